/** Requests to `starcoder serve`. */

/** What the server refused or failed to do, in words for the user. */
export class ServerError extends Error {
  constructor(
    message: string,
    readonly status = 0,
  ) {
    super(message);
  }
}

export interface CompletionBody {
  prompt: string;
  suffix: string;
  path: string;
  extras: { path: string; text: string }[];
  max_tokens: number;
  stop_at: "line" | "block";
  session: string;
}

/** A span of a text that stands in the attribution index, in UTF-16 units, and where it comes from. */
export interface Overlap {
  spans: [number, number][];
  sources: { repository?: string; path?: string; license?: string }[][];
}

export class Client {
  constructor(
    readonly url: string,
    private readonly key: string | undefined,
  ) {}

  /** Text of a completion; undefined if a newer request of the session took its place. */
  async complete(body: CompletionBody, signal: AbortSignal): Promise<string | undefined> {
    try {
      const answer = await this.call("POST", "/v1/completions", { ...body, temperature: 0, postprocess: true }, signal);
      return (answer as { choices?: { text?: string }[] }).choices?.[0]?.text ?? "";
    } catch (error) {
      if (error instanceof ServerError && error.status === 409) {
        return undefined;
      }
      throw error;
    }
  }

  /** Name of the model. */
  async model(): Promise<string> {
    const answer = await this.call("GET", "/v1/models", undefined, AbortSignal.timeout(5000));
    return (answer as { data?: { id?: string }[] }).data?.[0]?.id ?? "unknown";
  }

  /** Which parts of a text stand in the server's index. */
  async overlap(document: string): Promise<Overlap> {
    return (await this.call("POST", "/overlap", { document }, AbortSignal.timeout(20000))) as Overlap;
  }

  private async call(method: string, path: string, body: unknown, signal: AbortSignal): Promise<unknown> {
    let response: Response;
    try {
      response = await fetch(this.url.replace(/\/+$/, "") + path, {
        method,
        signal,
        headers: {
          "content-type": "application/json",
          ...(this.key ? { authorization: `Bearer ${this.key}` } : {}),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
    } catch (error) {
      if (signal.aborted) {
        throw error;
      }
      throw new ServerError(`cannot reach the server at ${this.url}`);
    }
    const answer: unknown = await response.json().catch(() => undefined);
    if (!response.ok) {
      const found = (answer as { error?: { message?: string } | string } | undefined)?.error;
      const message = typeof found === "string" ? found : found?.message;
      throw new ServerError(message ?? `the server answered ${response.status}`, response.status);
    }
    return answer;
  }
}
