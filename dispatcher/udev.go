package dispatcher

// udev reads what udevd sets for a program that a rule runs (udev(7)). That an
// interface is gone NetworkManager and ifupdown do not say of one they do not
// manage; all else the kernel says.
func udev(env Environment) (Event, error) {
	if err := missing(env, "udev(7)", "ACTION"); err != nil {
		return Event{}, err
	}
	e := Event{Caller: "udev", Action: short(env["ACTION"])}
	if env["ACTION"] != "remove" || env["SUBSYSTEM"] != "net" {
		return e, nil
	}
	e.Effect = Removed
	return about(e, env["INTERFACE"], nil)
}
