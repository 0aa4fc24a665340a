/** Ghost text: when to ask, what to send, and which answers are still of use. */

import { randomUUID } from "node:crypto";
import * as vscode from "vscode";

import { Client } from "./client";
import { Context } from "./context";
import { State } from "./state";
import { debounceMs, isMultiLine, lineRight, MultiLine, restOf, withLineEnds } from "./text";

const BEFORE = 60_000;
const AFTER = 20_000;

interface Shown {
  before: string;
  after: string;
  text: string;
}

export class Completions implements vscode.InlineCompletionItemProvider {
  private readonly session = randomUUID().slice(0, 8);
  private readonly shown = new Map<string, Shown>();
  private latencyMs = 100;
  /** The text that was accepted last, for attribution. */
  accepted = "";

  constructor(
    private readonly client: () => Promise<Client>,
    private readonly context: Context,
    private readonly state: State,
    private readonly report: (error: unknown) => void,
  ) {}

  async provideInlineCompletionItems(
    document: vscode.TextDocument,
    position: vscode.Position,
    context: vscode.InlineCompletionContext,
    token: vscode.CancellationToken,
  ): Promise<vscode.InlineCompletionItem[]> {
    const isAsked = context.triggerKind === vscode.InlineCompletionTriggerKind.Invoke;
    if (!isAsked && !this.state.isEnabledFor(document.languageId)) {
      return [];
    }
    const settings = vscode.workspace.getConfiguration("starcoder", document);
    // A menu item that is selected is part of what the completion has to continue.
    const selected = context.selectedCompletionInfo;
    const start = selected ? selected.range.start : position;
    const offset = document.offsetAt(start);
    const text = document.getText();
    const before = text.slice(0, offset) + (selected?.text ?? "");
    const after = text.slice(selected ? document.offsetAt(selected.range.end) : offset);
    const range = selected ? selected.range : new vscode.Range(position, position);
    if (!isAsked && lineRight(after).trim().length > (settings.get<number>("maxLineSuffix") ?? 8)) {
      return [];
    }
    const uri = document.uri.toString();
    const shown = this.shown.get(uri);
    const rest = shown && restOf(shown, before, after);
    if (rest !== undefined) {
      return [this.item((selected?.text ?? "") + rest, range)];
    }
    const version = document.version;
    if (!isAsked && !(await quiet(debounceMs(this.latencyMs), token))) {
      return [];
    }
    const completion = await this.ask(document, before, after, offset, settings, token);
    if (!completion?.trim() || token.isCancellationRequested || document.version !== version) {
      return [];
    }
    this.shown.set(uri, { before, after, text: completion });
    return [this.item((selected?.text ?? "") + completion, range)];
  }

  private async ask(
    document: vscode.TextDocument,
    before: string,
    after: string,
    offset: number,
    settings: vscode.WorkspaceConfiguration,
    token: vscode.CancellationToken,
  ): Promise<string | undefined> {
    const control = new AbortController();
    const cancelling = token.onCancellationRequested(() => control.abort());
    try {
      if (before.slice(-BEFORE).includes("\0") || !(await this.context.mayRead(document))) {
        return undefined;
      }
      const client = await this.client();
      this.state.setBusy(true);
      const began = Date.now();
      const completion = await client.complete(
        {
          prompt: before.slice(-BEFORE),
          suffix: after.slice(0, AFTER),
          path: vscode.workspace.asRelativePath(document.uri, false),
          extras: await this.context.gather(document, offset, settings.get<number>("contextCharacters") ?? 6000),
          max_tokens: settings.get<number>("maxTokens") ?? 96,
          stop_at: isMultiLine(before, after, settings.get<MultiLine>("multiLine") ?? "auto") ? "block" : "line",
          session: `vscode ${this.session} ${document.uri.toString()}`,
        },
        control.signal,
      );
      this.latencyMs = 0.8 * this.latencyMs + 0.2 * (Date.now() - began);
      return completion === undefined ? undefined : withLineEnds(completion, document.eol === vscode.EndOfLine.CRLF);
    } catch (error) {
      if (!control.signal.aborted) {
        this.report(error);
      }
      return undefined;
    } finally {
      cancelling.dispose();
      this.state.setBusy(false);
    }
  }

  private item(text: string, range: vscode.Range): vscode.InlineCompletionItem {
    const command = { title: "accepted", command: "starcoder.accepted", arguments: [text] };
    return new vscode.InlineCompletionItem(text, range, command);
  }
}

/** Wait for `ms`; false if the request was cancelled meanwhile. */
function quiet(ms: number, token: vscode.CancellationToken): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => done(true), ms);
    const cancelling = token.onCancellationRequested(() => done(false));
    function done(isQuiet: boolean): void {
      clearTimeout(timer);
      cancelling.dispose();
      resolve(isQuiet && !token.isCancellationRequested);
    }
  });
}
