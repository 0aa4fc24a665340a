"""`starcoder lsp`: inline completions for every editor with a language client, from one shared server.

A thin process without torch. Requests go to a running `starcoder serve`; where there is none, one is started
and ends with the last editor.
"""
