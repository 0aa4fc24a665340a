/** Decisions about text that need no editor: when to complete several lines, what is secret, which parts of files help. */

export type MultiLine = "auto" | "always" | "never";

const BLOCK_BEGINS = [":", "{", "(", "[", "=>", "->", " do", " then", "=", ","];

/** Whether a completion at this cursor may have several lines. */
export function isMultiLine(before: string, after: string, mode: MultiLine): boolean {
  if (mode !== "auto") {
    return mode === "always";
  }
  const line = before.slice(before.lastIndexOf("\n") + 1).trim();
  return lineRight(after).trim() === "" && (line === "" || BLOCK_BEGINS.some((end) => line.endsWith(end)));
}

/** What is right of the cursor on its line. */
export function lineRight(after: string): string {
  const end = after.indexOf("\n");
  return (end < 0 ? after : after.slice(0, end)).replace(/\r$/, "");
}

/** `text` with the line ends of the document. */
export function withLineEnds(text: string, isCrLf: boolean): string {
  const plain = text.replace(/\r\n/g, "\n");
  return isCrLf ? plain.replace(/\n/g, "\r\n") : plain;
}

/** What is left of a completion once part of it was typed; undefined if something else was. */
export function restOf(
  shown: { before: string; after: string; text: string },
  before: string,
  after: string,
): string | undefined {
  if (!before.startsWith(shown.before) || after !== shown.after) {
    return undefined;
  }
  const typed = before.slice(shown.before.length);
  return shown.text.startsWith(typed) && shown.text.length > typed.length
    ? shown.text.slice(typed.length)
    : undefined;
}

const SECRET_NAMES =
  /^(\.env(\..*)?|.*\.env|\.envrc|[._]netrc|\.pypirc|\.npmrc|\.pgpass|\.htpasswd|\.git-credentials|\.vault-token|id_(rsa|dsa|ecdsa|ed25519).*|credentials(\..*)?|secrets\..*|service-account.*\.json|.*-credentials\.json|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg|tfvars|tfstate|ovpn))$/;
const SECRET_FOLDERS = /(^|\/)(\.aws|\.ssh|\.gnupg|\.kube)\/|(^|\/)\.docker\/config\.json$/;

/** Whether a file often holds secrets, by its path with slashes. Such files are neither read nor completed. */
export function isSecret(path: string): boolean {
  return SECRET_NAMES.test(path.slice(path.lastIndexOf("/") + 1)) || SECRET_FOLDERS.test(path);
}

/** Part of another file; a higher score is of more use. */
export interface Piece {
  path: string;
  text: string;
  score: number;
}

const WINDOW_LINES = 40;

/** The names in a text, of three letters and more. */
export function namesIn(text: string): Set<string> {
  return new Set(text.match(/[\p{L}_][\p{L}\p{N}_]{2,}/gu) ?? []);
}

/** The part of a file that shares most names with the text around the cursor. */
export function bestWindow(path: string, text: string, names: Set<string>): Piece | undefined {
  const lines = text.split("\n");
  let best: Piece | undefined;
  for (let start = 0; start < lines.length; start += WINDOW_LINES) {
    const window = lines.slice(start, start + WINDOW_LINES).join("\n") + "\n";
    const score = overlap(names, window);
    if (score > 0 && (best === undefined || score > best.score)) {
      best = { path, text: window, score };
    }
  }
  return best;
}

function overlap(names: Set<string>, text: string): number {
  if (names.size === 0) {
    return 0;
  }
  const other = namesIn(text);
  return [...names].filter((name) => other.has(name)).length / names.size;
}

/** The best pieces of at most `budget` characters, the best one last: the model sees it right before the file. */
export function choose(pieces: Piece[], budget: number): { path: string; text: string }[] {
  const chosen: Piece[] = [];
  for (const piece of [...pieces].sort((left, right) => right.score - left.score)) {
    const size = piece.text.length + piece.path.length;
    if (size <= budget) {
      budget -= size;
      chosen.push(piece);
    }
  }
  return chosen.reverse().map(({ path, text }) => ({ path, text }));
}

/** Milliseconds to wait for more typing: a fifth of how long answers take, so that fast servers answer at once. */
export function debounceMs(latencyMs: number): number {
  return Math.min(300, Math.max(10, latencyMs / 5));
}
