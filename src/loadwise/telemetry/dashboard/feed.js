// The server's events over fetch: unlike EventSource it can send a key in a header.

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 15000;
// The server sends an event a second; silence this long means that it is gone.
const SILENT_MS = 8000;

/** Follows /v1/optimization/events for as long as the page is open, and tells `on` what comes. */
export class Feed {
  constructor(headers, on) {
    this.headers = headers;
    this.on = on;
    this.retryMs = FIRST_RETRY_MS;
    this.abort = null;
    this.timer = null;
  }

  /** Connects now, also where a connection was open or a retry was waiting. */
  restart() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.retryMs = FIRST_RETRY_MS;
    this.connect();
  }

  async connect() {
    const abort = this.abort = new AbortController();
    this.on.state("connecting");
    try {
      const answer = await fetch("v1/optimization/events", {
        headers: this.headers(), cache: "no-store", credentials: "omit", signal: abort.signal,
      });
      if (!answer.ok) return await this.refused(answer, abort);
      await this.read(answer.body.getReader(), abort);
      this.later("The server ended the connection.", abort);
    } catch (error) {
      this.later(error instanceof SyntaxError ? "The server sent something unreadable." : "The server cannot be reached.", abort);
    }
  }

  async refused(answer, abort) {
    const body = await answer.json().catch(() => null);
    const message = body?.error?.message ?? `The server answered ${answer.status}.`;
    if (answer.status === 401 || answer.status === 403) this.on.state("refused", message);
    else this.later(message, abort);
  }

  later(message, abort) {
    // A connection that this page ended itself is followed by another.
    if (this.abort !== abort) return;
    this.on.state("lost", message, this.retryMs);
    this.timer = setTimeout(() => this.connect(), this.retryMs);
    this.retryMs = Math.min(LAST_RETRY_MS, this.retryMs * 2);
  }

  async read(reader, abort) {
    const text = new TextDecoder();
    let buffer = "";
    for (;;) {
      const { value, done } = await within(reader, SILENT_MS, abort);
      if (done) return;
      buffer += text.decode(value, { stream: true });
      const events = buffer.split("\n\n");
      buffer = events.pop();
      for (const event of events) this.hear(event);
    }
  }

  hear(event) {
    let name = "message", data = "";
    for (const line of event.split("\n")) {
      if (line.startsWith("event: ")) name = line.slice(7);
      if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (!data) return;
    this.retryMs = FIRST_RETRY_MS;
    this.on.state("live");
    this.on.event(name, JSON.parse(data));
  }
}

function within(reader, limitMs, abort) {
  const silent = setTimeout(() => abort.abort(), limitMs);
  return reader.read().finally(() => clearTimeout(silent));
}
