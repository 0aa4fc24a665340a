/** What of other open files goes with a request; ignored, excluded and secret files never do. */

import * as vscode from "vscode";

import { bestWindow, choose, isSecret, namesIn, Piece } from "./text";

const AROUND_CURSOR = 2000;
const MAX_CHARACTERS = 400_000;
const RECENT_MS = 600_000;

interface GitRepository {
  checkIgnore(paths: string[]): Promise<Set<string>>;
}
interface GitApi {
  getRepository(uri: vscode.Uri): GitRepository | null;
}

export class Context implements vscode.Disposable {
  private readonly edited = new Map<string, { time: number; line: number }>();
  private readonly subscriptions: vscode.Disposable[] = [];

  constructor() {
    this.subscriptions.push(
      vscode.workspace.onDidChangeTextDocument((event) => {
        const change = event.contentChanges[0];
        if (change) {
          this.edited.set(event.document.uri.toString(), { time: Date.now(), line: change.range.start.line });
        }
      }),
      vscode.workspace.onDidCloseTextDocument((document) => this.edited.delete(document.uri.toString())),
    );
  }

  /** Whether a document's text may be sent. */
  async mayRead(document: vscode.TextDocument): Promise<boolean> {
    const path = document.uri.path;
    const exclude = vscode.workspace.getConfiguration("starcoder").get<string[]>("exclude") ?? [];
    if (isSecret(path) || exclude.some((pattern) => vscode.languages.match({ pattern }, document) > 0)) {
      return false;
    }
    return document.uri.scheme !== "file" || !(await isIgnored(document.uri));
  }

  /** Pieces of other open documents of at most `budget` characters. */
  async gather(
    document: vscode.TextDocument,
    offset: number,
    budget: number,
  ): Promise<{ path: string; text: string }[]> {
    if (budget <= 0) {
      return [];
    }
    const text = document.getText();
    const names = namesIn(text.slice(Math.max(0, offset - AROUND_CURSOR), offset + AROUND_CURSOR / 4));
    const pieces: Piece[] = [];
    for (const other of vscode.workspace.textDocuments) {
      const isCode = other.uri.scheme === "file" || other.uri.scheme === "vscode-remote";
      if (other.uri.toString() === document.uri.toString() || !isCode || !vscode.workspace.getWorkspaceFolder(other.uri)) {
        continue;
      }
      const content = other.getText();
      if (content.length > MAX_CHARACTERS || content.includes("\0") || !(await this.mayRead(other))) {
        continue;
      }
      const path = vscode.workspace.asRelativePath(other.uri, false);
      const best = bestWindow(path, content.replace(/\r\n/g, "\n"), names);
      const edit = this.edited.get(other.uri.toString());
      const age = edit ? Date.now() - edit.time : RECENT_MS;
      if (best) {
        pieces.push({ ...best, score: best.score + (age < RECENT_MS ? 0.5 * (1 - age / RECENT_MS) : 0) });
      }
    }
    return choose(pieces, budget);
  }

  dispose(): void {
    this.subscriptions.forEach((one) => one.dispose());
  }
}

async function isIgnored(uri: vscode.Uri): Promise<boolean> {
  const extension = vscode.extensions.getExtension<{ getAPI(version: 1): GitApi }>("vscode.git");
  if (!extension?.isActive) {
    return false;
  }
  try {
    const repository = extension.exports.getAPI(1).getRepository(uri);
    return repository !== null && (await repository.checkIgnore([uri.fsPath])).has(uri.fsPath);
  } catch {
    return false; // git support is switched off
  }
}
