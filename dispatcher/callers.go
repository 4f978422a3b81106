package dispatcher

import (
	"fmt"

	"multihomed/routing"
)

// Parse finds out who calls, and reads the event. NetworkManager's dispatcher gives two
// arguments, the interface and the action. Other hooks give one: dhclient, dhcpcd, ifupdown
// or udev. ifupdown may also give none, as it runs the scripts of its directories, and is
// known by its variables IFACE, MODE and PHASE. The error says that no known caller
// uses these arguments, that a variable is missing which the caller always sets, or that the interface has a name
// that none can have.
func Parse(args []string, env Environment) (Event, error) {
	switch {
	case len(args) == 2:
		return NetworkManager(args, env)
	case len(args) == 1 && args[0] == "dhclient":
		return dhclient(env)
	case len(args) == 1 && args[0] == "dhcpcd":
		return dhcpcd(env)
	case len(args) == 1 && args[0] == "udev":
		return udev(env)
	case len(args) == 1 && args[0] == "ifupdown",
		len(args) == 0 && env["IFACE"] != "" && env["MODE"] != "" && env["PHASE"] != "":
		return ifupdown(env)
	}
	what := fmt.Sprintf("%d arguments", len(args))
	if len(args) == 1 {
		what = fmt.Sprintf("the argument %q", short(args[0]))
	}
	return Event{}, fmt.Errorf("%s; NetworkManager gives an interface and an action, other callers give one of dhclient, dhcpcd, ifupdown and udev, ifupdown also nothing but its variables IFACE, MODE and PHASE", what)
}

// missing is the error for a caller without the variables that it always sets.
func missing(env Environment, manual string, names ...string) error {
	for _, name := range names {
		if env[name] == "" {
			return fmt.Errorf("the variable %s is not set; %s says who calls, and with what", name, manual)
		}
	}
	return nil
}

// about names the interface of an event and says what is known of it.
func about(e Event, name string, configs map[routing.Family]Config) (Event, error) {
	if err := interfaceName(name); err != nil {
		return Event{}, err
	}
	e.Interface, e.Configs = name, configs
	return e, nil
}

// only is what an event says that concerns one family.
func only(f routing.Family, c Config) map[routing.Family]Config {
	return map[routing.Family]Config{f: c}
}
