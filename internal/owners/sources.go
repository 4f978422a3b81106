package owners

import (
	"multihomed/internal/config"
	"multihomed/internal/hookstate"
	"multihomed/internal/offswitch"
	"multihomed/internal/routedlease"
	"multihomed/nm"
	"multihomed/routing"
	"multihomed/routing/kernel"
)

// Sources say what the links are: first NetworkManager, then hooks that configured an
// interface, then clients that leased a table for an address.
type Sources struct {
	Manager Manager
	Policy  nm.Policy
	// Links are the entries of [[link]] in the configuration.
	Links    []config.Link
	Hooked   *hookstate.Store
	Declared *routedlease.Store
	// Kind returns the driver's name of a virtual interface (IFLA_INFO_KIND), and the
	// interface that it is a port of.
	Kind func(name string) (kind, controller string)
	// Expected reports whether this host has a NetworkManager that may come.
	Expected func() bool
	// Routed names the interfaces that have rules of ours by device in the kernel.
	Routed func() []string
	// Off is what the administrator switched off.
	Off *offswitch.Switch
}

// Unread are the errors of files that cannot be read.
type Unread struct {
	// Hooks are reports of hooks, Leases routed leases.
	Hooks, Leases []error
}

// A Kernel is what is known of the kernel's interfaces; [kernel.Mirror] is one.
type Kernel interface {
	View(look func(*kernel.State))
}

// Open joins NetworkManager's word with the reports of hooks, the leases of clients and the off
// switch of this host. The daemon, stand-ins and status all use it to find the links. It
// leaves out files that cannot be read.
func Open(cfg config.Config, manager Manager, interfaces Kernel) (*Owners, Unread) {
	var unread Unread
	s := Sources{
		Manager: manager, Policy: cfg.NMPolicy(), Links: cfg.Links, Off: offswitch.Open(cfg.Switch()),
		Expected: func() bool { return cfg.NetworkManager.Expected() },
		Routed:   func() []string { return routed(interfaces) },
		Kind:     func(name string) (string, string) { return kindOf(interfaces, name) },
	}
	if cfg.NetworkManager != config.Auto {
		s.Routed = func() []string { return nil } // The administrator decided whether NetworkManager comes.
	}
	s.Hooked, unread.Hooks = hookstate.Open(cfg.RuntimeDir)
	s.Declared, unread.Leases = routedlease.Open(cfg.RuntimeDir)
	return Join(s), unread
}

// kindOf returns the driver's name of a virtual interface, and what it is a port of.
func kindOf(interfaces Kernel, name string) (kind, controller string) {
	interfaces.View(func(k *kernel.State) {
		if index, exists := k.IndexOf(name); exists {
			facts, _ := k.LinkFacts(index)
			kind = facts.Kind
			controller, _ = k.NameOf(facts.Master)
		}
	})
	return kind, controller
}

func routed(interfaces Kernel) (names []string) {
	interfaces.View(func(k *kernel.State) {
		for _, f := range routing.Families() {
			for _, r := range k.RuleOrder(f, routing.PriorityDevice) {
				names = append(names, r.OIF)
			}
		}
	})
	return names
}
