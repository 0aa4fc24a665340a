/** StarCoder for Visual Studio Code: wires settings, server, completions and commands. */

import * as vscode from "vscode";

import { Client, ServerError } from "./client";
import { Completions } from "./completions";
import { Context } from "./context";
import { SharedServer } from "./server";
import { State } from "./state";

const KEY = "starcoder.apiKey";

export function activate(context: vscode.ExtensionContext): void {
  const log = vscode.window.createOutputChannel("StarCoder", { log: true });
  const connection = new Connection(context, log);
  const gathering = new Context();
  const completions = new Completions(
    () => connection.client(),
    gathering,
    connection.state,
    (error) => connection.report(error),
  );
  const commands: Record<string, (...values: never[]) => unknown> = {
    "starcoder.toggle": () => connection.state.toggle(),
    "starcoder.toggleLanguage": toggleLanguage,
    "starcoder.snooze": () => snooze(connection.state),
    "starcoder.complete": () => vscode.commands.executeCommand("editor.action.inlineSuggest.trigger"),
    "starcoder.setKey": () => connection.setKey(),
    "starcoder.restart": () => connection.restart(),
    "starcoder.attribution": () => attribution(connection, completions.accepted),
    "starcoder.menu": () => menu(connection.state),
    "starcoder.log": () => log.show(),
    "starcoder.accepted": (text: string) => {
      completions.accepted = text;
    },
  };
  context.subscriptions.push(
    log,
    connection,
    gathering,
    vscode.languages.registerInlineCompletionItemProvider({ pattern: "**" }, completions),
    vscode.workspace.onDidChangeConfiguration((event) => {
      const names = ["url", "command", "model", "quantize", "adapter"];
      if (names.some((name) => event.affectsConfiguration(`starcoder.${name}`))) {
        void connection.restart();
      }
    }),
    ...Object.entries(commands).map(([name, run]) => vscode.commands.registerCommand(name, run)),
  );
  void connection.restart();
}

export function deactivate(): void {}

/** The server of this window: found or started once, again after `restart`. Errors are shown once each. */
class Connection implements vscode.Disposable {
  readonly state = new State();
  private server: SharedServer | undefined;
  private found: Promise<Client> | undefined;
  private readonly reported = new Set<string>();

  constructor(
    private readonly context: vscode.ExtensionContext,
    private readonly log: vscode.LogOutputChannel,
  ) {}

  client(): Promise<Client> {
    this.found ??= this.connect();
    return this.found;
  }

  async restart(): Promise<void> {
    this.reported.clear();
    this.found = undefined;
    try {
      await this.client();
    } catch (error) {
      this.report(error);
    }
  }

  report(error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    this.log.error(message);
    this.state.setServer("error", message);
    if (!(error instanceof ServerError) || error.status === 0) {
      this.found = undefined; // the next completion tries again
    }
    if (this.reported.has(message)) {
      return;
    }
    this.reported.add(message);
    const actions = error instanceof ServerError && error.status === 401 ? ["Set the API Key"] : ["Try Again", "Settings"];
    void vscode.window.showErrorMessage(`StarCoder: ${message}`, ...actions).then((chosen) => {
      if (chosen === "Set the API Key") {
        void this.setKey();
      } else if (chosen === "Settings") {
        void vscode.commands.executeCommand("workbench.action.openSettings", "starcoder.");
      } else if (chosen === "Try Again") {
        void this.restart();
      }
    });
  }

  async setKey(): Promise<void> {
    const prompt = "API key of the server; empty removes it";
    const key = await vscode.window.showInputBox({ prompt, password: true, ignoreFocusOut: true });
    if (key === undefined) {
      return;
    }
    await (key ? this.context.secrets.store(KEY, key) : this.context.secrets.delete(KEY));
    await this.restart();
  }

  dispose(): void {
    this.server?.dispose();
    this.state.dispose();
  }

  private async connect(): Promise<Client> {
    const settings = vscode.workspace.getConfiguration("starcoder");
    const text = (name: string): string => settings.get<string>(name) ?? "";
    this.state.setServer("loading", "");
    this.server?.dispose();
    this.server = undefined;
    let url = text("url");
    if (!url) {
      const launch = { command: text("command"), model: text("model"), quantize: text("quantize"), adapter: text("adapter") };
      this.server = new SharedServer(launch, (line) => this.log.info(line));
      url = await this.server.url();
    }
    const client = new Client(url, await this.context.secrets.get(KEY));
    const model = await client.model();
    this.log.info(`connected to ${url}, model ${model}`);
    this.state.setServer("ready", model);
    return client;
  }
}

async function toggleLanguage(): Promise<void> {
  const language = vscode.window.activeTextEditor?.document.languageId;
  if (language === undefined) {
    return;
  }
  const settings = vscode.workspace.getConfiguration("starcoder");
  const enabled = settings.get<Record<string, boolean>>("enabled") ?? {};
  const isOn = enabled[language] ?? enabled["*"] ?? true;
  await settings.update("enabled", { ...enabled, [language]: !isOn }, vscode.ConfigurationTarget.Global);
}

async function snooze(state: State): Promise<void> {
  const choices = [5, 15, 60].map((minutes) => ({ label: `${minutes} minutes`, minutes }));
  const chosen = await vscode.window.showQuickPick(choices, { placeHolder: "No completions for" });
  if (chosen) {
    state.snooze(chosen.minutes);
  }
}

async function menu(state: State): Promise<void> {
  const choices = [
    { label: state.isActive ? "Switch completions off" : "Switch completions on", command: "starcoder.toggle" },
    { label: "Switch this language on or off", command: "starcoder.toggleLanguage" },
    { label: "Snooze", command: "starcoder.snooze" },
    { label: "Connect again", command: "starcoder.restart" },
    { label: "Show the log", command: "starcoder.log" },
  ];
  const chosen = await vscode.window.showQuickPick(choices, { placeHolder: `StarCoder: ${state.summary}` });
  if (chosen) {
    await vscode.commands.executeCommand(chosen.command);
  }
}

/** Shows where the lines of the accepted completion stand in the server's attribution index. */
async function attribution(connection: Connection, text: string): Promise<void> {
  if (!text) {
    void vscode.window.showInformationMessage("StarCoder: no completion was accepted yet.");
    return;
  }
  try {
    const found = await (await connection.client()).overlap(text);
    const rows = found.spans.map(([start, end], number) => ({
      label: text.slice(start, end).trim().split("\n")[0] ?? "",
      detail: (found.sources[number] ?? [])
        .map((source) => [source.repository, source.path, source.license].filter(Boolean).join(" · "))
        .join(", "),
    }));
    if (rows.length === 0) {
      void vscode.window.showInformationMessage("StarCoder: nothing of the last completion is in the index.");
    } else {
      await vscode.window.showQuickPick(rows, { placeHolder: "Found in the index" });
    }
  } catch (error) {
    connection.report(error);
  }
}
