/**
 * Wires Cockpit's D-Bus client to the page. It reads the bus and nothing else: no command is run and
 * no file is read. A signal shows at once what it says itself; then the page reads the status anew.
 * So it ends with one consistent state, and many signals in a row cost one more read.
 */
import * as model from "./model.js";
import * as view from "./view.js";

const cockpit = window.cockpit;
const NAME = "org.multihomed1";
const PATH = "/org/multihomed1";
const MANAGER = "org.multihomed1.Manager";
const BUS = { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus" };

/** Measured values emit no signal, as they change with every probe. In between they are read so often. */
const REFRESH_MS = 10_000;

/** The daemon draws and answers with a small part of a processor: what shows faults comes first. */
const REDRAW_MS = 2_000;

/** Where signals never pause, a document is shown nevertheless after so many. */
const MOST_PASSED_OVER = 5;

/** The graph of more links than these is large: it is drawn when somebody opens it. */
const FEW_TO_DRAW = 20;

const $ = id => document.getElementById(id);

/** What is known. Only `show` reads it, and it is called after every change. */
const known = {
    connection: "connecting", error: "", status: null,
    allowed: false,
    report: null, reportAt: null,
    answer: null, verbose: false,
};

let client = null; // of the daemon, while it has its name on the bus
let signals = 0; // of the daemon, since the page was loaded
let passedOver = 0; // documents in a row that were older than a signal
let overview = model.overview(known);

/* Reading */

/** Runs an asynchronous read, at most one at a time; wishes meanwhile are one more. */
function coalesced(read) {
    let running = false;
    let again = false;
    return async () => {
        again = true;
        if (running)
            return;
        running = true;
        try {
            while (again) {
                again = false;
                await read();
            }
        } finally {
            running = false;
        }
    };
}

const refresh = coalesced(async () => {
    const asked = client;
    if (!asked)
        return;
    const before = signals;
    try {
        const [text] = await asked.call(PATH, MANAGER, "Describe", [{ objects: cockpit.variant("b", false) }], { type: "a{sv}" });
        if (asked !== client)
            return;
        // A signal may have said what this document does not know yet; the next one is on its way.
        if (signals !== before && known.status && ++passedOver < MOST_PASSED_OVER)
            return;
        passedOver = 0;
        known.status = model.parse(text);
        known.connection = "present";
    } catch (error) {
        // Who asks too much is told to ask later: what is shown is not wrong for that.
        if (asked !== client || (known.status && error?.name?.endsWith(".LimitsExceeded")))
            return;
        known.connection = "failed";
        known.error = messageOf(error);
    }
    show();
});

const redraw = coalesced(async () => {
    const asked = client;
    if (!asked || !$("graph").open)
        return;
    const options = {};
    if (known.answer)
        options.flow = cockpit.variant("s", known.answer.question.destination);
    try {
        const [svg] = await asked.call(PATH, MANAGER, "Graph", [options], { type: "a{sv}" });
        if (asked !== client)
            return;
        const drawing = model.drawingOf(new DOMParser().parseFromString(model.withoutStyle(svg), "image/svg+xml"));
        view.fill($("graph-view"), svg, () => view.graph(drawing, svg));
        $("graph-text").textContent = drawing.description;
    } catch (error) {
        view.fill($("graph-view"), messageOf(error), text => [view.el("p", { class: "error" }, text)]);
        $("graph-text").textContent = "";
    }
    await new Promise(done => setTimeout(done, REDRAW_MS));
});

/** The sentence of an error, whoever made it. */
function messageOf(error) {
    return error?.message || String(error);
}

function changed() {
    refresh();
    redraw();
}

/** Takes a signal of the daemon. */
function heard(path, _interface, signal, args) {
    signals++;
    if (signal === "PropertiesChanged" && known.connection === "present") {
        known.status = model.applied(known.status, path, args[1] ?? {});
        show();
    }
    changed();
}

/** The daemon has appeared on the bus. */
function appeared() {
    client?.close();
    const mine = client = cockpit.dbus(NAME, { bus: "system" });
    mine.subscribe({ path_namespace: PATH }, heard);
    mine.addEventListener("close", (_event, options) => {
        if (mine !== client)
            return;
        client = null;
        lost(options?.problem);
    });
    changed();
}

/** The daemon has left the bus. */
function left() {
    const old = client;
    client = null;
    old?.close();
    lost("not-found");
}

function lost(problem) {
    known.connection = problem === "not-found" ? "absent" : "lost";
    known.status = null;
    known.report = null;
    show();
}

/** Follows who has the name of the daemon. Its client alone would end with the daemon. */
function watchBus() {
    const bus = cockpit.dbus(BUS.name, { bus: "system" });
    bus.addEventListener("close", () => lost("disconnected"));
    bus.subscribe({ path: BUS.path, interface: BUS.name, member: "NameOwnerChanged", arg0: NAME }, (_path, _interface, _signal, [, , owner]) => {
        if (owner)
            appeared();
        else
            left();
    });
    bus.call(BUS.path, BUS.name, "NameHasOwner", [NAME], { type: "s" })
        .then(([has]) => {
            if (has && !client)
                appeared();
            else if (!has)
                left();
        })
        .catch(error => {
            known.connection = "failed";
            known.error = messageOf(error);
            show();
        });
}

/* Showing */

function show() {
    const before = overview;
    overview = model.overview(known);
    const { off } = overview;

    view.fill($("headline"), overview.headline, view.headline);
    $("content").hidden = !overview.usable;
    if (overview.usable && !before.usable && overview.links.length <= FEW_TO_DRAW)
        $("graph").open = true;
    const locked = overview.usable && !known.allowed;
    $("rights").hidden = !locked;
    $("rights").textContent = locked ? "You have limited access. To switch links off and on, and to check more deeply, turn on administrative access at the top of the window." : "";

    view.fill($("switch"), { usable: overview.usable, all: off?.all, allowed: known.allowed }, m => m.usable
        ? [view.el("button", {
            type: "button", class: `button ${m.all ? "primary" : "secondary"}`, "data-key": "switch all", disabled: !m.allowed,
            "aria-describedby": m.allowed ? null : "rights",
            onclick: event => confirmSwitch(null, m.all, event.currentTarget),
        }, m.all ? "Switch on" : "Switch off")]
        : []);

    view.fill($("findings"), { list: overview.findings, unread: overview.unread }, m => [
        ...view.findings(m.list, "Nothing is wrong."), ...view.unread(m.unread),
    ]);
    $("diagnose").disabled = !known.allowed;
    const diagnosis = known.report && { at: known.reportAt, ...model.diagnosisOf(known.report, overview.findings, overview.names) };
    $("diagnosis").hidden = !diagnosis;
    view.fill($("diagnosis"), diagnosis, m => m ? view.diagnosis(m) : []);

    view.fill($("unbound"), overview.unbound, m => m.length > 0 ? view.unbound(m) : [view.el("li", { class: "way" }, "It follows the main table.")]);
    view.links($("links"), overview.links, { allowed: known.allowed, hostOff: Boolean(off?.all) }, confirmSwitch);
    $("others").hidden = overview.others.length === 0;
    view.fill($("others-list"), overview.others.map(o => [o.name, o.why]), view.pairs);
    view.fill($("about"), overview.about, view.pairs);

    const names = overview.links.map(l => l.name);
    const chosen = $("what_if").value;
    view.fill($("what_if"), names, view.whatIf);
    $("what_if").value = [...$("what_if").options].some(o => o.value === chosen) ? chosen : "";
    view.fill($("interfaces"), overview.names, view.options);

    announce(model.changes(before, overview));
}

/** A screen reader reads what is put here. */
function announce(sentences) {
    if (sentences.length > 0)
        $("announcement").textContent = sentences.join(" ");
}

/** Says what came of something that the user did, to eyes and ears. */
function tell(text, isError) {
    $("told-text").textContent = text;
    $("told").className = isError ? "told error" : "told";
    $("told").hidden = false;
    announce([text]);
}

/* Switching */

/** The question that is open, or was last: an answer that comes late must not close another one. */
let question = null;

/** @param {?string} link null: all of multihomed */
function confirmSwitch(link, on, button) {
    const dialog = $("confirm");
    const what = link ?? "multihomed";
    const where = link || on ? "" : " on this host";
    $("confirm-title").textContent = `Switch ${what} ${on ? "on" : "off"}${where}?`;
    const texts = on
        ? [link ? `multihomed makes the rules and routes of ${link} again, in the same tables as before.` : "multihomed makes the rules and routes of all links again, in the same tables as before."]
        : [
            link ? `multihomed removes its rules and routes of ${link}. The connection itself stays up.` : "multihomed removes all its rules and routes. The connections themselves stay up.",
            `Traffic then follows the main table${link ? "" : ", as without multihomed"}: packets from an address may leave by another link, whose provider may drop them. You may lose your own connection to this host.`,
            "It stays off, also after a restart of this host, until you switch it on.",
        ];
    $("confirm-text").replaceChildren(...texts.map(text => view.el("p", {}, text)));
    $("confirm-error").hidden = true;
    const yes = $("confirm-yes");
    const mine = question = { busy: false };
    const label = busy => {
        mine.busy = busy;
        yes.textContent = busy ? `Switching ${on ? "on" : "off"} …` : `Switch ${on ? "on" : "off"}`;
        // Not disabled: the focus would be lost.
        yes.setAttribute("aria-disabled", String(busy));
    };
    label(false);
    yes.className = `button ${on ? "primary" : "danger"}`;
    const key = button.dataset.key;
    $("confirm-form").onsubmit = async event => {
        event.preventDefault();
        if (mine.busy)
            return;
        label(true);
        $("confirm-error").hidden = true;
        try {
            const said = await privileged(on ? "On" : "Off", [link === null ? [] : [link]], "as");
            if (question === mine)
                dialog.close();
            tell(model.sentence(said), false);
            changed();
        } catch (error) {
            const text = model.sentence(messageOf(error));
            if (question !== mine || !dialog.open) {
                tell(text, true);
                return;
            }
            $("confirm-error").textContent = text;
            $("confirm-error").hidden = false;
            label(false);
        }
    };
    // The button that opened the dialog may have been replaced meanwhile.
    dialog.onclose = () => [...document.querySelectorAll("[data-key]")].find(e => e.dataset.key === key)?.focus();
    dialog.showModal();
    $("confirm-no").focus();
}

/** Calls a method with the rights of the administrator, if the user has turned them on. */
async function privileged(method, args, type) {
    const admin = cockpit.dbus(NAME, { bus: "system", superuser: "try" });
    try {
        // "i": polkit may ask the user where Cockpit's session has an agent.
        const [result] = await admin.call(PATH, MANAGER, method, args, { type, flags: "i" });
        return result;
    } finally {
        admin.close();
    }
}

async function diagnose() {
    const button = $("diagnose");
    button.setAttribute("aria-busy", "true");
    button.textContent = "Checking …";
    try {
        known.report = model.parse(await privileged("Diagnose", [{}], "a{sv}"));
        known.reportAt = new Date().toISOString();
        show();
        const n = model.diagnosisOf(known.report, overview.findings, overview.names).findings.length;
        announce([n === 0 ? "The deeper check found nothing more." : `The deeper check found ${model.count(n, "more finding")}.`]);
    } catch (error) {
        tell(model.sentence(messageOf(error)), true);
    }
    button.textContent = "Check more deeply";
    button.removeAttribute("aria-busy");
}

/* Explaining */

async function explain(event) {
    event.preventDefault();
    const form = $("explain");
    const fields = Object.fromEntries(new FormData(form));
    const { packet, errors } = model.packetOf(fields);
    for (const p of form.querySelectorAll(".error")) {
        p.hidden = true;
        $(p.id.replace("-error", "")).removeAttribute("aria-invalid");
    }
    for (const { field, text } of errors) {
        $(`${field}-error`).textContent = text;
        $(`${field}-error`).hidden = false;
        $(field).setAttribute("aria-invalid", "true");
    }
    if (errors.length > 0) {
        if (errors.some(e => e.field !== "destination"))
            $("advanced").open = true;
        $(errors[0].field).focus();
        return;
    }
    try {
        const [text] = await client.call(PATH, MANAGER, "Explain", [packet], { type: "a{sv}" });
        known.answer = model.parse(text);
        showAnswer();
        announce([known.answer.summary]);
        redraw();
    } catch (error) {
        known.answer = null;
        const text = model.sentence(messageOf(error));
        view.fill($("answer"), text, t => [view.el("p", { class: "error" }, t)]);
        $("answer").hidden = false;
        announce([text]);
    }
}

function showAnswer() {
    const { answer, verbose } = known;
    view.fill($("answer"), { answer, verbose }, m => view.answer(model.answerOf(m.answer, m.verbose), m.verbose, chosen => {
        known.verbose = chosen;
        showAnswer();
    }));
    $("answer").hidden = false;
}

/* Start */

$("explain").addEventListener("submit", explain);
$("diagnose").addEventListener("click", diagnose);
$("graph").addEventListener("toggle", redraw);
$("told-close").addEventListener("click", () => { $("told").hidden = true });
$("confirm-no").addEventListener("click", () => $("confirm").close());

const permission = cockpit.permission({ admin: true });
permission.addEventListener("changed", () => {
    known.allowed = permission.allowed === true;
    show();
});
known.allowed = permission.allowed === true;

setInterval(() => { if (!cockpit.hidden && !document.hidden) refresh() }, REFRESH_MS);
show();
watchBus();
