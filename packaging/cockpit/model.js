/**
 * From documents of the daemon to what the page shows. Nothing here knows the page, Cockpit or a
 * clock, so that a test can ask each function. Names from the host stay what they are: plain strings.
 */

/** The version of the documents that this page understands (Schema in internal/status). */
export const SCHEMA = 1;

/** Families in the order in which they are shown. */
export const FAMILIES = [["ipv4", "IPv4"], ["ipv6", "IPv6"]];

/** How grave something is, the worst first. */
const GRAVITY = ["error", "warning", "notice"];

/** So many names are listed in one line; more are counted. */
const FEW_NAMES = 4;

/** Words at the beginning of a fix that are programs. */
const COMMANDS = ["multihomed", "multihomectl", "nmcli", "ip", "sysctl", "systemctl", "journalctl", "iptables", "nft", "sh", "ping"];

const FAILOVER_OFF = "failover is switched off in the configuration";
const ONE_UPLINK = "multihomed watches the uplinks of a family where two have a default route";

/**
 * Reads a document. What is no document of this version is an error that says what to do.
 * @param {string} text JSON from the bus
 * @returns {object}
 */
export function parse(text) {
    let value;
    try {
        value = JSON.parse(text);
    } catch {
        throw new Error("multihomed sent an answer that is not JSON. To fix: update multihomed and cockpit-multihomed.");
    }
    if (value === null || typeof value !== "object" || value.schema !== SCHEMA)
        throw new Error("multihomed sends documents that this page does not know. To fix: update multihomed and cockpit-multihomed to the same version.");
    return value;
}

/** Errors of buses, of systemd's and of Cockpit, that say that nobody is there, or that nobody answered. */
const NOBODY = /\.(ServiceUnknown|NameHasNoOwner)$|^not-found$/;
const SILENT = /\.(NoReply|Timeout|TimedOut|ETIMEDOUT)$|^timeout$/;

/**
 * What a failed call means, in a sentence that says what to do.
 * @param {string} name of the error on the bus, or the problem of Cockpit
 * @param {string} message what came with it; multihomed's own says all
 */
export function failure(name, message) {
    if (NOBODY.test(name))
        return "multihomed is not running. To fix: sudo systemctl start multihomed";
    if (SILENT.test(name))
        return "multihomed did not answer in time. To see why: journalctl -u multihomed";
    return message;
}

/** @returns {string} "1 rule", "2 rules" */
export function count(n, noun) {
    return n === 1 ? `1 ${noun}` : `${n} ${noun}s`;
}

/** @returns {string} "a", "a and b", "a, b and c" */
export function enumerate(words) {
    return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`;
}

/** A list that may be null or absent. */
function list(value) {
    return Array.isArray(value) ? value : [];
}

/**
 * A sentence of the daemon starts in the middle of a line there, and at its beginning here. Names and
 * commands keep their first letter.
 * @param {string} text
 * @param {Array<string>} names that are no words, such as those of links
 */
export function sentence(text, names = []) {
    if (!text)
        return "";
    const word = text.split(/[\s,:;]/, 1)[0];
    if (!/^[a-z]+$/.test(word) || names.includes(word) || COMMANDS.includes(word))
        return text;
    const first = String.fromCodePoint(text.codePointAt(0));
    return first.toUpperCase() + text.slice(first.length);
}

/**
 * What the whole page shows.
 *
 * @param {object} facts
 * @param {string} facts.connection "connecting", "absent" (nobody has the name on the bus), "lost"
 *     (Cockpit has no connection to the host), "failed" (the daemon refused to answer), or "present"
 * @param {string} [facts.error] why, of "failed"
 * @param {object} [facts.status] the last document of Describe
 */
export function overview({ connection, error, status }) {
    const shown = connection === "present" && status;
    return {
        headline: headline(connection, error, status),
        off: shown ? offOf(status) : null,
        links: shown ? linksOf(status) : [],
        noLinks: shown ? noLinks(status) : "",
        names: shown ? namesOf(status) : [],
        unbound: shown && !status.off && (status.daemon?.ready || FAMILIES.some(([key]) => status.unbound?.[key])) ? unboundOf(status) : [],
        noUnbound: shown && !status.off ? "Not known yet." : "It follows the main table.",
        bindings: shown ? bindingsOf(status) : [],
        findings: shown ? findingsOf(list(status.problems), namesOf(status)) : [],
        noFindings: shown && !status.off && !status.daemon?.ready ? "Nothing is known to be wrong yet." : "Nothing is wrong.",
        unread: shown ? unreadOf(status) : [],
        others: shown ? list(status.other_interfaces).map(o => ({ name: o.interface, why: o.why })) : [],
        about: shown ? aboutOf(status) : [],
        usable: Boolean(shown),
    };
}

/**
 * The state of the service in one line, with what to do about it.
 * @returns {{kind: string, title: string, text: string, command?: string}}
 */
export function headline(connection, error, status) {
    switch (connection) {
    case "connecting":
        return { kind: "neutral", title: "Connecting", text: "Cockpit is asking multihomed." };
    case "absent":
        return {
            kind: "error", title: "multihomed is not running",
            text: "This page shows nothing until the service runs. Rules and routes that are in the kernel stay there. To start it, run:",
            command: "sudo systemctl start multihomed",
        };
    case "lost":
        return { kind: "error", title: "No connection to the host", text: "Cockpit has lost its connection. Reload the page to connect again." };
    case "failed":
        return { kind: "error", title: "multihomed does not answer", text: sentence(error) };
    }
    if (status.off)
        return {
            kind: "warning", title: `multihomed is switched off${byWhom(status.off)}`, since: status.off.since ?? null,
            text: "It adds no rules and routes. All traffic follows the main table.",
        };
    const daemon = status.daemon ?? {};
    if (daemon.waiting)
        return { kind: "warning", title: "multihomed is waiting", text: `${sentence(daemon.waiting)}.` };
    if (!daemon.ready)
        return { kind: "neutral", title: "multihomed is starting", text: "It does not know all links yet." };
    const links = list(status.links);
    if (links.length === 0)
        return {
            kind: "neutral", title: "No links",
            text: "multihomed adds nothing until NetworkManager, ifupdown or a DHCP client brings up a network.",
        };
    const force = status.in_force ?? { planned: 0, present: 0, unexpected: 0 };
    const errors = list(status.problems).filter(p => p.severity === "error").length;
    const extra = force.unexpected > 0 ? `, ${force.unexpected} to remove` : "";
    const away = offOf(status).links;
    const text = `${force.present} of ${force.planned} rules and routes are active, on ${count(links.length, "link")}${extra}.` +
        (away.length > 0 ? ` ${away.length > FEW_NAMES ? count(away.length, "link") : enumerate(away)} ${away.length === 1 ? "is" : "are"} switched off.` : "");
    if (errors > 0)
        return { kind: "error", title: `${count(errors, "error")} found`, text };
    if (!status.ok)
        return { kind: "error", title: "The routing is not complete", text };
    for (const state of ["down", "recovering"]) {
        const names = uplinksThatAre(state, status);
        if (names.length > 0) {
            const what = names.length > FEW_NAMES ? count(names.length, "uplink") : enumerate(names);
            return { kind: noWayOut(status) ? "error" : "warning", title: `${what} ${names.length === 1 ? "is" : "are"} ${state}`, text };
        }
    }
    return { kind: "ok", title: "All links work as planned", text };
}

/** The names of uplinks in this state, with the family where they are in another one, too. */
function uplinksThatAre(state, status) {
    const uplinks = list(status.failover?.uplinks);
    return [...new Set(uplinks.filter(h => h.state === state).map(h => h.interface))].map(name => {
        const others = uplinks.filter(h => h.interface === name && h.state !== state && !h.not_watched);
        const families = FAMILIES.filter(([key]) => uplinks.some(h => h.interface === name && h.state === state && h.family === key));
        return others.length > 0 ? `${name} (${families.map(([, family]) => family).join(", ")})` : name;
    });
}

/** Whether no watched uplink of a family works. */
function noWayOut(status) {
    return FAMILIES.some(([key]) => {
        const watched = list(status.failover?.uplinks).filter(h => h.family === key && !h.not_watched);
        return watched.length > 0 && watched.every(h => h.state === "down");
    });
}

/** Why there is no link. */
function noLinks(status) {
    if (status.off)
        return "There are none while multihomed is switched off.";
    if (!status.daemon?.ready)
        return "Not known yet.";
    return "There are no links. Connect a network, and it appears here.";
}

/** What a state of a binding is called, and how it looks. */
const BINDINGS = { "active": ["ok", "Active"], "link-down": ["warning", "Link down"], "waiting": ["neutral", "Waiting"], "failed": ["error", "Failed"], "refused": ["error", "Refused"] };

/** Who wants a binding, or how long it lasts. */
const BOUND_BY = { configuration: "in the configuration", runtime: "until the next boot", sockets: "for what multihomectl run, units and DNS of users have bound" };

/**
 * What is bound to links.
 * @returns {Array<{what: string, link: string, kind: string, word: string, notes: Array<string>}>}
 */
export function bindingsOf(status) {
    return list(status.bindings).map(b => {
        const [kind, word] = BINDINGS[b.state] ?? ["neutral", String(b.state)];
        return {
            what: `${b.selector}=${b.value}`, kind, word,
            link: b.interface && b.interface !== b.link ? `${b.link} (${b.interface})` : b.link,
            notes: [
                b.why ?? "", b.strict ? "" : "not strict", b.deny ? "requests by other links denied" : "", BOUND_BY[b.by] ?? "",
                b.dropped_packets > 0 ? `${count(b.dropped_packets, "packet")} dropped` : "",
            ].filter(Boolean),
        };
    });
}

/** On which link forwarded packets are answered; empty where nobody asked for that. */
function answersOn(status) {
    const families = list(status.answers?.families).filter(f => f.answers).map(f => FAMILIES.find(([key]) => key === f.family)?.[1] ?? f.family);
    const parts = families.length > 0 ? [`${enumerate(families)} answered on the link that was asked`] : [];
    if (status.answers?.dropped_packets > 0)
        parts.push(`${count(status.answers.dropped_packets, "stray packet")} dropped`);
    return parts.join(", ");
}

function byWhom(off) {
    return off.by ? ` by ${off.by}` : "";
}

/** What is switched off. */
function offOf(status) {
    return { all: Boolean(status.off), links: list(status.off_links).map(l => l.interface) };
}

/** What could not be looked at. */
function unreadOf(status) {
    const out = [...list(status.unread)];
    if (status.unchecked_links > 0)
        out.push(`whether the traffic of ${count(status.unchecked_links, "link")} leaves by its link`);
    return out;
}

function aboutOf(status) {
    const out = [];
    const daemon = status.daemon ?? {};
    if (daemon.version)
        out.push(["multihomed", `version ${daemon.version}`]);
    const manager = status.network_manager ?? {};
    if (manager.none)
        out.push(["NetworkManager", "not installed"]);
    else if (manager.unwanted)
        out.push(["NetworkManager", manager.unwanted]);
    else if (!manager.running)
        out.push(["NetworkManager", "not running"]);
    else
        out.push(["NetworkManager", manager.version ? `version ${manager.version}` : "running"]);
    const answered = answersOn(status);
    if (answered)
        out.push(["Forwarded packets", answered]);
    if (status.tables)
        out.push(["Tables of links", `${status.tables.first} to ${status.tables.last}`]);
    return out;
}

/**
 * By which link traffic leaves that is bound to none.
 * @returns {Array<{family: string, interface: string, table: string, moved: boolean, from: string, why: string}>}
 */
export function unboundOf(status) {
    return FAMILIES.map(([key, family]) => {
        const u = status.unbound?.[key];
        if (!u)
            return { family, key, interface: "", text: "has no way out", why: "", moved: false };
        const shares = list(u.shares);
        const total = shares.reduce((sum, leg) => sum + leg.weight, 0);
        let text = "leaves by";
        if (shares.length > 1)
            text = "is shared by";
        const table = u.table === 254 ? "" : `table ${u.table}`;
        return {
            family, key, text, table,
            interface: shares.length > 1
                ? enumerate(shares.map(leg => `${leg.interface} (${Math.round(100 * leg.weight / total)} %)`))
                : u.interface,
            moved: Boolean(u.main) && u.main !== u.interface,
            from: u.main ?? "",
            why: u.why ?? "",
        };
    });
}

/** What a state of health is called, and how it looks. The words are those of `multihomectl status`. */
export function healthWord(h) {
    switch (h.state) {
    case "up": return ["ok", "Up"];
    case "suspect": return ["warning", "Suspect"];
    case "down": return ["error", "Down"];
    case "recovering": return ["warning", "Recovering"];
    case "unprobed": return ["neutral", "Not watched"];
    case "unknown": return ["neutral", h.not_watched ? "Not watched" : "Not known yet"];
    default: return ["neutral", String(h.state)];
    }
}

/** @param {number} ms two digits at least */
export function milliseconds(ms) {
    return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

/** @param {number} share from 0 to 1; a little is not nothing */
export function loss(share) {
    const percent = share * 100;
    if (percent <= 0)
        return "no loss";
    return percent < 1 ? "less than 1 % lost" : `${Math.round(percent)} % lost`;
}

function healthOf(status, uplinks, link, key, family) {
    const h = uplinks.get(link.interface)?.[key];
    if (!h) {
        const networks = list(link.networks).some(n => n.family === key);
        if (!networks)
            return null;
        const role = link.roles?.[key]?.role ?? link.role;
        if (role !== "uplink")
            return null;
        return { family, kind: "neutral", word: "Not watched", why: status.failover && !status.failover.enabled ? FAILOVER_OFF : ONE_UPLINK, measured: [], since: null };
    }
    const [kind, word] = healthWord(h);
    const measured = [];
    // Those of a dead link are of before.
    if (h.state !== "down" && typeof h.rtt_ms === "number")
        measured.push(milliseconds(h.rtt_ms));
    if (h.state !== "down" && typeof h.loss === "number")
        measured.push(loss(h.loss));
    const more = [];
    if (h.router_only)
        more.push("only its router answers");
    if (h.metered)
        more.push("metered: it is tested rarely");
    if (h.deaths_today > 0)
        more.push(`${count(h.deaths_today, "death")} in the last 24 hours`);
    return {
        family, kind, word, measured, more,
        why: h.not_watched || h.why || "",
        since: h.not_watched ? null : h.since ?? null,
    };
}

/** The state of the link itself. */
function stateOf(link) {
    if (link.draining)
        return ["warning", "Going down"];
    if (!link.up)
        return ["error", "Down"];
    if (!link.carrier)
        return ["error", "No carrier"];
    if (link.pending)
        return ["neutral", "Coming up"];
    return ["ok", "Connected"];
}

function networkOf(link, n) {
    const role = link.roles?.[n.family]?.role ?? link.role;
    const via = list(n.gateways).map(g => g.via ?? "the link itself");
    let gateway = [...new Set(via)].join(", ");
    if (!gateway && n.table && role !== "local")
        gateway = link.pending ? "none yet" : "none";
    return {
        family: FAMILIES.find(([key]) => key === n.family)?.[1] ?? n.family,
        prefix: n.host_addresses ? "host addresses" : n.prefix,
        table: n.table ? String(n.table) : "none",
        addresses: list(n.addresses).map(addressOf),
        gateway: gateway || "–",
    };
}

/** Most addresses are dynamic, so that says little. */
function addressOf(a) {
    const flags = list(a.flags).filter(f => f !== "dynamic");
    if (a.peer)
        flags.unshift(`peer ${a.peer}`);
    return { text: a.address, flags };
}

/** All links, with those that are switched off at the end. */
export function linksOf(status) {
    const uplinks = new Map();
    for (const h of list(status.failover?.uplinks))
        uplinks.set(h.interface, { ...uplinks.get(h.interface), [h.family]: h });
    const links = list(status.links).map(link => {
        const [kind, state] = stateOf(link);
        const force = link.in_force ?? { planned: 0, present: 0, unexpected: 0 };
        const complete = force.present === force.planned && force.unexpected === 0;
        const health = FAMILIES.map(([key, family]) => healthOf(status, uplinks, link, key, family)).filter(Boolean);
        const roles = Object.entries(link.roles ?? {})
            .map(([key, r]) => [FAMILIES.find(([k]) => k === key)?.[1] ?? key, `${r.role}: ${r.why}`]);
        return {
            name: link.interface,
            off: false,
            profile: link.profile ?? "",
            type: link.type ?? "",
            role: link.role === "uplink" ? "Uplink" : "Local",
            kind, state,
            why: link.why ?? "",
            roleWhy: link.role_why ?? "",
            roles,
            health,
            networks: list(link.networks).map(n => networkOf(link, n)),
            addresses: list(link.networks).flatMap(n => list(n.addresses)).filter(a => !list(a.flags).includes("temporary")).map(a => a.address),
            leftAlone: Object.entries(link.left_alone ?? {}).map(([key, why]) => [FAMILIES.find(([k]) => k === key)?.[1] ?? key, why]),
            unused: list(link.unused_addresses).map(addressOf),
            complete,
            trouble: kind === "error" || kind === "warning" || !complete || health.some(h => h.kind === "error" || h.kind === "warning"),
            force: `${force.present} of ${force.planned} active${force.unexpected > 0 ? `, ${force.unexpected} to remove` : ""}`,
            since: null,
        };
    });
    const known = new Map(links.map(l => [l.name, l]));
    for (const l of list(status.off_links)) {
        if (known.has(l.interface)) {
            known.get(l.interface).off = true; // It is about to go.
            continue;
        }
        links.push({
            name: l.interface, off: true, profile: "", type: "", role: "–", kind: "neutral", state: "Switched off",
            why: `switched off${byWhom(l)}`, roleWhy: "", roles: [], health: [], networks: [], addresses: [],
            leftAlone: [], unused: [], complete: true, trouble: false, force: "none", since: l.since ?? null,
        });
    }
    // With many, the page would be too long to find one.
    const inTrouble = links.filter(l => l.trouble).length;
    return links.map(l => ({ ...l, open: l.trouble && inTrouble <= FEW_NAMES }));
}

/** Names of interfaces, which are no words. */
function namesOf(status) {
    return [...list(status.links), ...list(status.off_links), ...list(status.other_interfaces)].map(l => l.interface);
}

/**
 * @param {Array} problems of a status or a report, in any order
 * @param {Array<string>} names of interfaces
 */
export function findingsOf(problems, names) {
    const label = { error: "Error", warning: "Warning", notice: "Notice" };
    return problems.map(p => ({
        severity: GRAVITY.includes(p.severity) ? p.severity : "notice",
        label: label[p.severity] ?? String(p.severity),
        code: p.code ?? "",
        link: p.link ?? "",
        object: p.object ?? "",
        text: sentence(p.text, names),
        fix: sentence(p.fix, names),
        commands: list(p.commands),
        evidence: list(p.evidence),
        // Some sentences say it themselves.
        since: /\bsince \d/.test(p.text ?? "") ? null : p.since ?? null,
    })).sort((a, b) => GRAVITY.indexOf(a.severity) - GRAVITY.indexOf(b.severity));
}

/**
 * What a diagnosis found beyond the problems that the page shows anyway.
 * @param {object} report a document of Diagnose
 * @param {Array} shown findings of the status
 * @param {Array<string>} names of interfaces
 */
export function diagnosisOf(report, shown, names) {
    const key = f => JSON.stringify([f.code, f.link, f.object, f.text]);
    const known = new Set(shown.map(key));
    return {
        findings: findingsOf(list(report.findings), names).filter(f => !known.has(key(f))),
        unlooked: list(report.not_looked).map(u => sentence(u.why)),
    };
}

/* The explain box */

/** Fields of the form that hold numbers: the key of D-Bus, its type, the range, and the label. */
const NUMBERS = [
    ["sport", "q", 1, 65535, "The source port"],
    ["dport", "q", 1, 65535, "The destination port"],
    ["uid", "u", 0, 4294967294, "The user"],
    ["mark", "u", 0, 4294967295, "The mark"],
    ["tos", "y", 0, 255, "The type of service"],
];

/**
 * Makes the packet of D-Bus from the fields of the form.
 * @param {Object<string, string>} fields text by the names of the keys
 * @returns {{packet: object, errors: Array<{field: string, text: string}>}}
 */
export function packetOf(fields) {
    const packet = {};
    const errors = [];
    const put = (key, type, value) => { packet[key] = { t: type, v: value } };
    const text = key => (fields[key] ?? "").trim();
    if (!/^[0-9a-f.:]+(%\S+)?$/i.test(text("destination")) || !/[.:]/.test(text("destination")))
        errors.push({ field: "destination", text: "Enter an address such as 203.0.113.1 or 2001:db8::1. Names are not resolved." });
    else
        put("destination", "s", text("destination"));
    for (const key of ["source", "oif", "iif", "protocol"]) {
        if (text(key))
            put(key, "s", text(key));
    }
    if (text("iif") && text("oif"))
        errors.push({ field: "iif", text: "A packet either comes in by an interface or is sent by a socket that is bound to one. Clear one of the two." });
    if (text("iif") && !text("source"))
        errors.push({ field: "source", text: "A packet that comes in has a source. Enter its address." });
    for (const [key, type, low, high, label] of NUMBERS) {
        if (!text(key))
            continue;
        const n = /^(0x[0-9a-f]+|[0-9]+)$/i.test(text(key)) ? Number(text(key)) : NaN;
        if (!(n >= low && n <= high))
            errors.push({ field: key, text: `${label} is a number from ${low} to ${high}.` });
        else
            put(key, type, n);
    }
    const changes = ["what_if", "and_if"].map(text).filter(Boolean);
    if (changes.length > 0)
        put("what_if", "as", changes);
    return { packet, errors };
}

/** Why a rule without selectors matches (EveryPacket in internal/explain). */
const EVERY_PACKET = "it is for every packet";

/** Results that say that a rule has no part in the answer. */
const FOLDED = ["no", "stepped over"];

/** How many rules of one reason in a row are shown one by one, as `multihomectl explain` does. */
const FEW = 2;

/** What came of a rule, in the words of `multihomectl explain`. */
export function resultText(rule) {
    const every = rule.why === EVERY_PACKET;
    const matches = every ? "matches every packet" : `matches: ${rule.why}`;
    switch (rule.result) {
    case "no": return `no: ${rule.why}`;
    case "stepped over": return `stepped over: ${rule.why}`;
    case "not asked": return `not asked: ${rule.why}`;
    case "not understood": return `skipped: ${rule.why}`;
    case "goto": return `${matches}, so the lookup goes on there`;
    case "goto nowhere": return `${matches}, but ${rule.rejected}`;
    case "nothing": return `${matches}, and does nothing`;
    case "no route": return `${matches}, but the table has no route${rule.rejected ? `: ${rule.rejected}` : ""}`;
    case "throw": return `${matches}, but the table has ${rule.route}`;
    case "outranked": return `${matches}, but ${rule.rejected}`;
    case "suppressed": return `${matches}, but ${rule.rejected} rejects the route ${rule.route}`;
    case "answer":
        if (!rule.route)
            return rule.why;
        return every ? rule.route : `${rule.why}: ${rule.route}`;
    default: return `${rule.result}: ${rule.why}`;
    }
}

/** Who made a rule and why. */
export function whose(rule) {
    if (rule.by === "multihomed") {
        let text = "multihomed";
        if (rule.sentence)
            text += `: ${rule.sentence}`;
        if (rule.lifts)
            text += `: ${rule.lifts}`;
        if (rule.link)
            text += `, link ${rule.link}`;
        if (rule.profile && rule.profile !== rule.link)
            text += `, profile ${rule.profile}`;
        if (rule.binding)
            text += ` (${rule.binding})`;
        return text;
    }
    if (rule.maker)
        return `a rule as ${rule.maker} makes it`;
    return rule.by === "other" ? "a rule of another program" : "";
}

function sameReason(a, b) {
    return a.result === b.result && a.why === b.why && a.selector === b.selector && (FOLDED.includes(a.result) || a.result === "not asked");
}

/** The rules as rows; those that do not match for one reason are one row. */
export function rowsOf(rules, verbose) {
    const mixed = rules.some(r => r.by === "multihomed");
    const rows = [];
    for (let i = 0; i < rules.length;) {
        let n = 1;
        while (i + n < rules.length && sameReason(rules[i], rules[i + n]))
            n++;
        const first = rules[i];
        if (!verbose && ((FOLDED.includes(first.result) && n > FEW) || first.result === "not asked")) {
            const last = rules[i + n - 1];
            let text = count(n, "rule");
            if (first.selector)
                text += ` by ${first.selector}`;
            if (last.priority !== first.priority)
                text += ` up to ${last.priority}`;
            rows.push({ priority: String(first.priority), rule: text, folded: true, result: resultText(first), whose: "", kind: "passive" });
            i += n;
            continue;
        }
        const passive = FOLDED.includes(first.result) || first.result === "not asked";
        rows.push({
            priority: String(first.priority), rule: first.text, folded: false, result: resultText(first),
            whose: (!passive || verbose) && (first.by === "multihomed" || first.maker || mixed) ? whose(first) : "",
            kind: first.result === "answer" ? "answer" : passive ? "passive" : "active",
        });
        i++;
    }
    return rows;
}

function tableName(table) {
    return { 253: "default", 254: "main", 255: "local" }[table] ?? String(table);
}

/** What the kernel itself says to a lookup. */
function kernelOf(doc, lookup) {
    const k = lookup.kernel;
    if (!k) {
        if (list(doc.what_if).length > 0 || lookup.purpose === "reverse path")
            return null;
        return { kind: "neutral", text: "The kernel was not asked this." };
    }
    let text = k.error && !k.sent ? k.error : k.sent || k.route || "";
    if (!(k.error && !k.sent)) {
        if (k.table)
            text += `, table ${tableName(k.table)}`;
        if (k.source)
            text += `, src ${k.source}`;
    }
    if (k.difference)
        return { kind: "error", text: `The kernel says something else: ${text} (${k.difference}).` };
    return { kind: "ok", text: `The kernel says the same: ${text}.` };
}

/** Options of `multihomectl explain`, as the form calls them. */
const FLAGS = { "--from": "Source address", "--mark": "Mark", "--uid": "User number", "--proto": "Protocol", "--sport": "Source port", "--dport": "Destination port", "--oif": "Bound to the interface", "--tos": "Type of service" };

function inWordsOfForm(text) {
    return text.replace(/--[a-z]+/g, flag => FLAGS[flag] ? `the field “${FLAGS[flag]}”` : flag);
}

/**
 * An explanation as the page shows it.
 * @param {object} doc a document of Explain
 * @param {boolean} verbose each rule by itself
 */
export function answerOf(doc, verbose) {
    const kinds = { "sent": "ok", "local": "ok", "refused": "error", "no route": "error", "assumed on-link": "warning" };
    return {
        kind: kinds[doc.outcome] ?? "neutral",
        summary: doc.summary,
        destination: doc.question?.destination ?? "",
        assumptions: list(doc.assumptions),
        lookups: list(doc.lookups).map((l, i) => ({
            title: sentence(l.text || (i === 0 ? doc.question?.text ?? "" : "")),
            rows: rowsOf(list(l.rules), verbose),
            objection: l.objection ?? "",
            kernel: kernelOf(doc, l),
        })),
        mayDiffer: list(doc.may_differ).map(c => sentence(inWordsOfForm(c.text))),
        unread: list(doc.unread).map(sentence),
    };
}

/* The graph */

/**
 * The drawing without its style sheet. The policy of the page forbids one in whatever it parses; an
 * image has its own.
 */
export function withoutStyle(svg) {
    return svg.replace(/<style>[^<]*<\/style>/g, "");
}

/**
 * Checks a drawing before it is shown, and finds its words. It is shown as an image, where nothing
 * in it can run or load; this is the second lock.
 * @param {Document} doc from DOMParser, as image/svg+xml
 * @returns {{title: string, description: string, width: number, height: number}}
 */
export function drawingOf(doc) {
    const SVG = "http://www.w3.org/2000/svg";
    const root = doc.documentElement;
    if (!root || root.namespaceURI !== SVG || root.localName !== "svg" || doc.getElementsByTagName("parsererror").length > 0)
        throw new Error("multihomed sent a graph that is not SVG.");
    for (const element of root.getElementsByTagName("*")) {
        if (element.namespaceURI !== SVG || ["script", "foreignObject", "image", "use", "a"].includes(element.localName))
            throw new Error(`multihomed sent a graph with an element that it never draws: ${element.localName}.`);
    }
    const child = name => [...root.children].find(e => e.localName === name)?.textContent.trim() ?? "";
    return { title: child("title"), description: child("desc"), width: Number(root.getAttribute("width")) || 800, height: Number(root.getAttribute("height")) || 600 };
}

/* Signals */

/** The interface of an object of a link: its index, as sd_bus_path_encode(3) writes it. */
export function indexOf(path) {
    const found = /^\/org\/multihomed1\/link\/_3([0-9])([0-9]*)$/.exec(path);
    return found ? Number(found[1] + found[2]) : 0;
}

/**
 * The status after PropertiesChanged, so that a dead link shows at once: the document that tells the
 * rest is read afterwards, and takes its time on a busy host.
 * @param {?object} status the last document, which is not changed
 * @param {string} path of the object
 * @param {Object<string, {v: *}>} changed the properties, as variants
 * @returns {?object} the same if the signal says nothing that is shown
 */
export function applied(status, path, changed) {
    if (!status)
        return status;
    const plain = variants => Object.fromEntries(Object.entries(variants).map(([name, variant]) => [name, variant.v]));
    const values = plain(changed);
    if (path === "/org/multihomed1" && values.Unbound) {
        const unbound = {};
        for (const [family, way] of Object.entries(values.Unbound)) {
            const { Interface, Table, Main, Why, Shares } = plain(way);
            unbound[family] = { interface: Interface, table: Table, main: Main, why: Why, shares: list(Shares).map(([name, weight]) => ({ interface: name, weight })) };
        }
        return { ...status, unbound };
    }
    const index = indexOf(path);
    const link = list(status.links).find(l => l.index === index);
    if (!index || !link)
        return status;
    const after = { ...status };
    if ("Up" in values || "Carrier" in values)
        after.links = status.links.map(l => l === link ? { ...l, up: values.Up ?? l.up, carrier: values.Carrier ?? l.carrier } : l);
    if (values.Health && status.failover) {
        const verdicts = values.Health.map(plain);
        after.failover = {
            ...status.failover,
            uplinks: list(status.failover.uplinks).map(h => {
                const v = h.interface === link.interface && verdicts.find(verdict => verdict.Family === h.family);
                if (!v)
                    return h;
                const isSame = v.State === h.state && (v.State !== "unprobed" || v.Why === h.why);
                const notWatched = isSame ? h.not_watched : v.State === "unprobed" ? v.Why : "";
                return { ...h, state: v.State, why: v.Why, not_watched: notWatched, since: v.Since ? new Date(v.Since / 1000).toISOString() : null };
            }),
        };
    }
    return after;
}

/* Words for who does not see */

/**
 * What changed between two overviews, in sentences for a live region.
 * @returns {string[]} few: many changes are one sentence
 */
export function changes(before, after) {
    const out = [];
    if (before.headline.title !== after.headline.title)
        out.push(`${after.headline.title}.`);
    const links = view => new Map(view.links.map(l => [l.name, l]));
    const [was, is] = [links(before), links(after)];
    for (const [name, link] of is) {
        const old = was.get(name);
        if (!old) {
            if (before.usable)
                out.push(`New link: ${name}.`);
            continue;
        }
        if (old.state !== link.state)
            out.push(`${name}: ${link.state}.`);
        for (const h of link.health) {
            const earlier = old.health.find(o => o.family === h.family);
            if (earlier && earlier.word !== h.word)
                out.push(`${name}, ${h.family}: ${h.word}. ${sentence(h.why)}.`);
        }
    }
    if (after.usable) {
        for (const name of was.keys()) {
            if (!is.has(name))
                out.push(`${name} is no longer a link.`);
        }
    }
    for (const u of after.unbound) {
        const old = before.unbound.find(o => o.family === u.family);
        if (old && old.interface !== u.interface)
            out.push(`${u.family} traffic that is bound to no link ${u.text} ${u.interface}.`.replace(" .", "."));
    }
    return out.length > 5 ? [`${count(out.length, "change")}.`] : out;
}
