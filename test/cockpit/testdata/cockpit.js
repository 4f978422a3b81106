// Stands in for Cockpit's cockpit.js: a bus of one service, whose answers a test sets in `host`.
(() => {
    const emitter = () => {
        const listeners = {};
        return {
            addEventListener: (name, f) => (listeners[name] ??= []).push(f),
            emit: (name, ...args) => (listeners[name] ?? []).forEach(f => f({ type: name }, ...args)),
        };
    };
    const host = window.host = {
        documents: {}, present: true, calls: [], signals: [], owners: [], permission: Object.assign(emitter(), { allowed: null }),
        refuse: {},
        allow(allowed) { host.permission.allowed = allowed; host.permission.emit("changed") },
        signal(path = "/org/multihomed1", changed = {}) { host.signals.forEach(f => f(path, "org.freedesktop.DBus.Properties", "PropertiesChanged", ["", changed, []])) },
        own(present) { host.present = present; host.owners.forEach(f => f("", "", "NameOwnerChanged", ["org.multihomed1", "", present ? ":1.7" : ""])) },
    };
    const call = async (method, args) => {
        host.calls.push([method, ...args]);
        if (host.refuse[method])
            throw new Error(host.refuse[method]);
        if (method === "NameHasOwner")
            return [host.present];
        return [await host.documents[method]];
    };
    window.cockpit = {
        hidden: false,
        variant: (t, v) => ({ t, v }),
        permission: () => host.permission,
        dbus: name => ({
            ...emitter(),
            close() {},
            subscribe: (_match, f) => (name === "org.multihomed1" ? host.signals : host.owners).push(f),
            call: (_path, _interface, method, args) => call(method, args),
        }),
    };
})();
