/** The status bar, and what it shows: whether completions are on, and how the server is. */

import * as vscode from "vscode";

export type ServerState = "ready" | "loading" | "error";

export class State implements vscode.Disposable {
  private readonly bar = vscode.window.createStatusBarItem("starcoder", vscode.StatusBarAlignment.Right, 100);
  private isOn = true;
  private snoozedUntil = 0;
  private timer: NodeJS.Timeout | undefined;
  private server: ServerState = "loading";
  private detail = "";
  private isBusy = false;

  constructor() {
    this.bar.name = "StarCoder";
    this.bar.command = "starcoder.menu";
    this.draw();
    this.bar.show();
  }

  /** Whether completions may be shown in documents of this language. */
  isEnabledFor(language: string): boolean {
    const languages = vscode.workspace.getConfiguration("starcoder").get<Record<string, boolean>>("enabled") ?? {};
    return this.isActive && (languages[language] ?? languages["*"] ?? true);
  }

  get isActive(): boolean {
    return this.isOn && Date.now() >= this.snoozedUntil;
  }

  toggle(): void {
    this.isOn = !this.isActive;
    this.snoozedUntil = 0;
    this.draw();
  }

  snooze(minutes: number): void {
    this.snoozedUntil = Date.now() + minutes * 60_000;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.draw(), minutes * 60_000 + 100);
    this.draw();
  }

  setServer(server: ServerState, detail: string): void {
    this.server = server;
    this.detail = detail;
    this.draw();
  }

  setBusy(isBusy: boolean): void {
    this.isBusy = isBusy;
    this.draw();
  }

  /** The state in one line. */
  get summary(): string {
    if (!this.isOn) {
      return "off";
    }
    if (!this.isActive) {
      return `snoozed until ${new Date(this.snoozedUntil).toLocaleTimeString()}`;
    }
    return { ready: `ready: ${this.detail}`, loading: "loading the model", error: this.detail }[this.server];
  }

  dispose(): void {
    clearTimeout(this.timer);
    this.bar.dispose();
  }

  private draw(): void {
    const icon = !this.isActive
      ? "circle-slash"
      : this.server === "error"
        ? "warning"
        : this.server === "loading" || this.isBusy
          ? "loading~spin"
          : "sparkle";
    this.bar.text = `$(${icon}) StarCoder`;
    this.bar.tooltip = `StarCoder: ${this.summary}`;
    this.bar.backgroundColor =
      this.isActive && this.server === "error" ? new vscode.ThemeColor("statusBarItem.warningBackground") : undefined;
  }
}
