"""Programs that attack the sandbox, all ours; `programs` says what each is after."""
