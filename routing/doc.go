// Package routing decides what the kernel must hold so that every link of a
// multihomed host works at the same time.
//
// The package is pure: facts go in as values, decisions come out as values.
// It knows nothing of netlink, D-Bus, databases or clocks; the packages around
// it (routing/kernel, nm, allocator) turn the outside world into its types and
// its [Op] values into system calls. The daemon, the dispatcher and the status
// command all ask the same [Planner], so what is explained is what is done.
//
// Terms are those of rtnetlink(7), ip-rule(8) and ip-route(8).
package routing
