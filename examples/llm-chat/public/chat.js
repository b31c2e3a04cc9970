"use strict";
// The conversation is here, in this tab, and goes along with each question. Who asks is the session's business.

const at = (id) => document.getElementById(id);
const [conversation, welcome, list, ask, question, send, stop, state] =
  ["conversation", "welcome", "messages", "ask", "question", "send", "stop", "state"].map(at);
const [problem, problemTitle, problemText, again] = ["problem", "problem-title", "problem-text", "again"].map(at);

// What is sent of a long conversation: its end. The application takes 64 KiB.
const BYTES_MAX = 48 * 1024;
const MESSAGES_MAX = 100;

let messages = [];      // what was said: {role, content}
let answering = null;   // the AbortController of the answer that is coming
let countdown = null;   // until another try makes sense

/* --- what one sees --- */

function show(role, text) {
  welcome.hidden = true;
  const item = document.createElement("li");
  item.className = role;
  const who = document.createElement("span");
  who.className = "hidden";
  who.textContent = role === "user" ? "You: " : "Answer: ";
  const words = document.createElement("span");
  words.className = "text";
  words.textContent = text;
  item.append(who, words);
  list.append(item);
  follow(true);
  return item;
}

function note(item, text) {
  const line = document.createElement("span");
  line.className = "note";
  line.textContent = text;
  item.append(line);
}

// Scrolls along, unless somebody reads further up.
function follow(always) {
  const below = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight;
  if (always || below < 80) conversation.scrollTop = conversation.scrollHeight;
}

function complain(title, text, retryAfter) {
  problemTitle.textContent = title;
  problemText.textContent = text;
  problem.hidden = false;
  again.hidden = retryAfter === null;
  state.textContent = "";
  follow(true);
  let left = retryAfter || 0;
  const tick = () => {
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- <= 0) clearInterval(countdown);
  };
  clearInterval(countdown);
  countdown = setInterval(tick, 1000);
  tick();
}

function forget() {
  clearInterval(countdown);
  problem.hidden = true;
}

function busy(is) {
  send.hidden = is;
  stop.hidden = !is;
}

/* --- asking --- */

// Errors that are no part of the answer: title, text, and the seconds until another try (null: none makes sense).
class Problem extends Error {
  constructor(title, text, retryAfter = 0) {
    super(text);
    Object.assign(this, { title, retryAfter });
  }
}

const TITLES = {
  400: "That cannot be asked.", 401: "You are logged out.", 403: "That was refused.", 413: "That is too long.",
  502: "The model failed.", 503: "Too busy right now.", 504: "No answer in time.",
};

async function problemOf(response) {
  let said = {};
  try { said = await response.json(); } catch { /* not ours: the gateway's page, or nothing */ }
  const title = TITLES[response.status] || `Something went wrong (${response.status}).`;
  const text = said.message || said.detail || "";
  if (response.status === 401) return new Problem(title, "Reload the page to log in again.", null);
  if ([400, 403, 413].includes(response.status)) return new Problem(title, text, null);
  const wait = Number.parseInt(response.headers.get("Retry-After"), 10);
  return new Problem(title, text, Number.isFinite(wait) ? wait : 0);
}

// What fits, from the end; never beginning with an answer.
function recent() {
  const encoder = new TextEncoder();
  let bytes = 0, from = messages.length;
  while (from > 0 && messages.length - from < MESSAGES_MAX) {
    bytes += encoder.encode(JSON.stringify(messages[from - 1])).length;
    if (bytes > BYTES_MAX && from < messages.length) break;
    from -= 1;
  }
  while (from < messages.length - 1 && messages[from].role !== "user") from += 1;
  return messages.slice(from);
}

// Server-sent events, as they come: [name, value] each.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const whole = (text + value).split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      let name = "message", data = "";
      for (const line of event.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data += line.slice(6);
      }
      yield [name, JSON.parse(data)];
    }
  }
}

async function stream(item, signal) {
  const response = await fetch("/chat", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Accept": "text/event-stream, application/json", "X-CSRF-Token": ask.dataset.token },
    body: JSON.stringify({ messages: recent() }),
    signal,
  });
  if (!response.ok) throw await problemOf(response);
  const words = item.querySelector(".text");
  for await (const [name, value] of events(response.body)) {
    if (name === "error") throw new Problem(TITLES[value.status] || "Something went wrong.", value.message);
    if (name === "done") return value.finish_reason;
    words.append(value.text);
    follow(false);
  }
  throw new Problem("The answer was cut.", "The connection ended before the answer did.");
}

async function answer() {
  forget();
  busy(true);
  state.textContent = "Waiting for the answer.";
  const item = show("assistant", "");
  item.setAttribute("aria-busy", "true");
  const asked = messages; // another one is there when somebody began a new chat in between
  const aborting = answering = new AbortController();
  try {
    const reason = await stream(item, aborting.signal);
    if (reason === "length") note(item, "It ends here: the model may say no more at a time.");
    if (reason === "content_filter") note(item, "The model's filter ended it here.");
    state.textContent = "The answer is complete.";
  } catch (error) {
    if (asked !== messages) return;
    const was = error.name === "AbortError" ? null
      : error instanceof Problem ? error
      : new Problem("No connection.", "The server cannot be reached, or the connection broke.");
    if (was === null) {
      note(item, "Stopped.");
      state.textContent = "Stopped.";
    } else {
      complain(was.title, was.message, was.retryAfter);
    }
  }
  item.removeAttribute("aria-busy");
  answering = null;
  const text = item.querySelector(".text").textContent;
  if (text) messages.push({ role: "assistant", content: text });
  else if (!item.querySelector(".note")) item.remove();
  busy(false);
  if (problem.hidden) question.focus();
}

function submit() {
  const text = question.value.trim();
  if (!text || answering) return;
  question.value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  answer();
}

ask.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") answering?.abort(); });
stop.addEventListener("click", () => answering?.abort());
again.addEventListener("click", () => {
  if (answering) return;
  // Half an answer is not what the next one goes on from.
  if (messages.at(-1)?.role === "assistant") { messages.pop(); list.lastElementChild.remove(); }
  if (messages.length > 0) answer();
});
at("new").addEventListener("click", () => {
  answering?.abort();
  answering = null;
  forget();
  busy(false);
  messages = [];
  list.replaceChildren();
  welcome.hidden = false;
  state.textContent = "";
  question.focus();
});
