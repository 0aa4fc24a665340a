/**
 * Finds the server that all editors share, and keeps it running while this window is open.
 *
 * `starcoder lsp` does both: it is started, asked for the server's address (by `starcoder.status`), and left
 * running. The server stops after the last such process has ended, however it ended.
 */

import { ChildProcess, spawn } from "node:child_process";

export interface Launch {
  command: string;
  model: string;
  quantize: string;
  adapter: string;
}

export class SharedServer {
  private child: ChildProcess | undefined;

  constructor(
    private readonly launch: Launch,
    private readonly log: (line: string) => void,
  ) {}

  /** Address of the running server, started if there is none. Rejects with a message for the user. */
  async url(): Promise<string> {
    const { command, model, quantize, adapter } = this.launch;
    const options = Object.entries({ model, quantize, adapter });
    const flags = options.flatMap(([name, value]) => (value ? [`--${name}`, value] : []));
    this.dispose();
    const child = spawn(command, ["lsp", ...flags], { stdio: ["pipe", "pipe", "pipe"] });
    this.child = child;
    child.stderr.on("data", (data: Buffer) => this.log(data.toString().trimEnd()));
    const ask = connect(child);
    const failed = new Promise<never>((_, reject) => {
      child.on("error", () =>
        reject(new Error(`cannot run '${command}'. Install it: pip install 'starcoder-kit[serve]'`)),
      );
      child.on("exit", (code) => reject(new Error(`'${command} lsp' ended with exit code ${code}`)));
    });
    failed.catch(() => undefined); // after the answer nobody waits for it
    return Promise.race([failed, SharedServer.status(ask)]);
  }

  dispose(): void {
    this.child?.stdin?.end();
    this.child?.removeAllListeners();
    this.child?.kill();
    this.child = undefined;
  }

  private static async status(ask: Ask): Promise<string> {
    await ask("initialize", { processId: process.pid, rootUri: null, capabilities: {} });
    const status = (await ask("workspace/executeCommand", { command: "starcoder.status", arguments: [] })) as {
      ready?: boolean;
      server?: string;
      error?: string;
    };
    if (!status.ready || status.server === undefined) {
      throw new Error(status.error ?? "the server did not start");
    }
    return status.server;
  }
}

interface Answer {
  id?: number;
  result?: unknown;
  error?: { message: string };
}

type Ask = (method: string, params: unknown) => Promise<unknown>;

/** JSON-RPC requests to a language server, over its standard streams. */
export function connect(child: ChildProcess): Ask {
  const waiting = new Map<number, (answer: Answer) => void>();
  let received = Buffer.alloc(0);
  child.stdout?.on("data", (data: Buffer) => {
    received = Buffer.concat([received, data]);
    for (;;) {
      const end = received.indexOf("\r\n\r\n");
      const length = Number(/content-length: *(\d+)/i.exec(received.subarray(0, Math.max(0, end)).toString())?.[1]);
      if (end < 0 || !(received.length >= end + 4 + length)) {
        return;
      }
      const message = JSON.parse(received.subarray(end + 4, end + 4 + length).toString("utf8")) as Answer;
      received = received.subarray(end + 4 + length);
      if (message.id !== undefined) {
        waiting.get(message.id)?.(message);
        waiting.delete(message.id);
      }
    }
  });
  child.stdin?.on("error", () => undefined); // its end is reported by "exit"
  let number = 0;
  return (method, params) =>
    new Promise((resolve, reject) => {
      number += 1;
      waiting.set(number, ({ result, error }) => (error ? reject(new Error(error.message)) : resolve(result)));
      const body = JSON.stringify({ jsonrpc: "2.0", id: number, method, params });
      child.stdin?.write(`Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
    });
}
