package kerneltest

import (
	"fmt"
	"slices"
	"strings"

	"multihomed/routing"
)

// Text renders what is ours in the words of `ip rule` and `ip route`: groups of
// interfaces, rules in the kernel's order, routes sorted.
func (k *Kernel) Text() string {
	var b strings.Builder
	for _, index := range k.indexes() {
		if i := k.interfaces[index]; i.Group != 0 {
			fmt.Fprintf(&b, "link %s group %d\n", i.Name, i.Group)
		}
	}
	return b.String() + k.text(k.policy.OwnsRule, k.policy.OwnsRoute)
}

// ForeignText renders what is not ours.
func (k *Kernel) ForeignText() string {
	return k.text(
		func(r routing.Rule) bool { return !k.policy.OwnsRule(r) },
		func(r routing.Route) bool { return !k.policy.OwnsRoute(r) },
	)
}

func (k *Kernel) text(rule func(routing.Rule) bool, route func(routing.Route) bool) string {
	var b strings.Builder
	for _, f := range routing.Families() {
		ip := map[routing.Family]string{routing.IPv4: "ip", routing.IPv6: "ip -6"}[f]
		for _, p := range k.priorities(f) {
			for _, r := range k.bands[band{f, p}] {
				if rule(r) {
					fmt.Fprintf(&b, "%s rule %s\n", ip, r)
				}
			}
		}
		var lines []string
		for t, routes := range k.routes {
			if t.family != f {
				continue
			}
			for _, r := range routes {
				if route(r) {
					device := k.name(r.Device)
					if device == "" {
						device = fmt.Sprintf("if%d", r.Device)
					}
					lines = append(lines, fmt.Sprintf("%s route %s\n", ip, r.Text(device)))
				}
			}
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	return b.String()
}
