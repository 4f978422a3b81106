package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"multihomed/routing"
)

// A Bind is one entry of [[bind]]: what it selects leaves by one link. One of User, Mark,
// Interface, Source, Unit, Slice and Cgroup is set.
type Bind struct {
	// Link is the name of an interface, or the name or UUID of its profile.
	Link string
	// User is a name, a number, or a range of numbers such as "1000-1999".
	User string
	// Mark selects what this host sends by its mark (SO_MARK in socket(7)).
	Mark routing.Mark
	// Interface is the one by which forwarded packets come in, Source their network.
	Interface string
	Source    netip.Prefix
	// Unit is a unit of systemd that has processes, Slice one that has units.
	Unit, Slice string
	// Cgroup is a path below the root of the control groups.
	Cgroup string
	// Strict says that nothing leaves by another uplink when the link has no way.
	Strict bool
	// DNS says that queries go to the servers of the link, for programs of this host.
	DNS bool
	// Inbound is how whoever asks by another link is answered, for what is forwarded.
	Inbound Inbound
}

// Inbound is how requests that come by another link are answered.
type Inbound string

// Answer answers them where they were asked, Deny by the link of the binding or not at all.
const (
	Answer Inbound = "answer"
	Deny   Inbound = "deny"
)

// A Selector is a key of [[bind]] that selects packets, with its value as text.
type Selector struct{ Key, Value string }

// String is the selector as `multihomectl bind` has it: user=alice.
func (s Selector) String() string { return s.Key + "=" + s.Value }

// Selector returns what the entry selects by.
func (b Bind) Selector() Selector {
	switch {
	case b.User != "":
		return Selector{"user", b.User}
	case b.Mark.Mask != 0:
		return Selector{"mark", markText(b.Mark)}
	case b.Interface != "":
		return Selector{"interface", b.Interface}
	case b.Source.IsValid():
		return Selector{"source", b.Source.String()}
	case b.Unit != "":
		return Selector{"unit", b.Unit}
	case b.Slice != "":
		return Selector{"slice", b.Slice}
	default:
		return Selector{"cgroup", b.Cgroup}
	}
}

// IsForwarded reports whether the entry is for what this host forwards.
func (b Bind) IsForwarded() bool { return b.Interface != "" || b.Source.IsValid() }

// IsCgroup reports whether the entry selects processes by their control group.
func (b Bind) IsCgroup() bool { return b.Unit != "" || b.Slice != "" || b.Cgroup != "" }

// Users are the user numbers of an entry that names them by number.
func (b Bind) Users() (u routing.UIDRange, numbered bool) {
	first, last, isRange := strings.Cut(b.User, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 32)
	to, err2 := strconv.ParseUint(last, 10, 32)
	if err1 != nil || err2 != nil {
		return routing.UIDRange{}, false
	}
	return routing.UIDRange{Set: true, First: uint32(from), Last: uint32(to)}, true
}

// CheckUsers refuses users that must not be bound.
func CheckUsers(u routing.UIDRange) error {
	switch {
	case u.First == 0:
		return errors.New("packets that this host forwards count as root's, and would be bound with them")
	case u.Last < u.First:
		return errors.New("the range is empty")
	case u.Last == math.MaxUint32:
		return errors.New("4294967295 is no user")
	default:
		return nil
	}
}

// meets reports whether two entries could select one packet by the same kind of
// selector. Two strict ones with different links would then drop it.
func (b Bind) meets(o Bind) bool {
	u, numbered := b.Users()
	v, also := o.Users()
	switch {
	case b.User != "" && o.User != "":
		return b.User == o.User || numbered && also && u.First <= v.Last && v.First <= u.Last
	case b.Mark.Mask != 0 && o.Mark.Mask != 0:
		common := b.Mark.Mask & o.Mark.Mask
		return b.Mark.Value&common == o.Mark.Value&common
	case b.Source.IsValid() && o.Source.IsValid():
		return b.Source.Overlaps(o.Source)
	default:
		return b.Selector() == o.Selector()
	}
}

// Meeting returns the first of the other entries that selects packets of this one.
func (b Bind) Meeting(others []Bind) (Bind, bool) {
	for _, o := range others {
		if b.meets(o) {
			return o, true
		}
	}
	return Bind{}, false
}

// CheckMark refuses the mark of an entry that could be one of multihomed's.
func (b Bind) CheckMark(ours routing.MarkMask) error {
	if b.Mark.Value&uint32(ours) != 0 {
		return fmt.Errorf("multihomed uses the bits %#x of marks (answers.mark_mask)", uint32(ours))
	}
	return nil
}

const bindList = "bind"

// MostBinds bounds the entries: each makes some rules, and every packet is compared with them.
const MostBinds = 256

func (v *validator) binds(file []rawBind, ours routing.MarkMask) []Bind {
	if len(file) == 0 {
		return nil // As in Default, so that two configurations compare.
	}
	if len(file) > MostBinds {
		v.fail(v.at.of(bindList, MostBinds, ""), bindList, fmt.Sprintf("%d entries; at most %d are allowed", len(file), MostBinds))
		return nil
	}
	var all []Bind
	for i, r := range file {
		isWhole := !v.faulty[entryKey(bindList, i, "")]
		before := len(v.errs) + v.more
		b := v.bind(i, r)
		if !isWhole || len(v.errs)+v.more > before {
			continue
		}
		if err := b.CheckMark(ours); err != nil {
			v.failBind(i, "mark", err.Error()+"; choose others, or another answers.mark_mask")
		}
		if o, meets := b.Meeting(all); meets {
			v.failBind(i, "", fmt.Sprintf("%s selects packets that %s selects, too; each may be bound once", b.Selector(), o.Selector()))
		}
		all = append(all, b)
	}
	return all
}

func (v *validator) failBind(i int, key, message string) {
	v.fail(v.at.of(bindList, i, key), entryKey(bindList, i, key), message)
}

// refuseBind says that a value of an entry is not allowed, and why if that is not obvious.
func (v *validator) refuseBind(i int, key string, value any, why string) {
	want, _ := allowed(bindList + "." + key)
	message := fmt.Sprintf("%v is not allowed", value)
	if why != "" {
		message += " (" + why + ")"
	}
	v.failBind(i, key, message+"; want "+want)
}

func (v *validator) bind(i int, r rawBind) Bind {
	b := Bind{Strict: r.Strict == nil || *r.Strict, Inbound: Answer}
	isWhole := !v.faulty[entryKey(bindList, i, "")]
	var selectors []string
	text := func(key string, value *string, check func(string) string) string {
		if value == nil {
			return ""
		}
		if key != "link" {
			selectors = append(selectors, key)
		}
		why := check(*value)
		if !utf8.ValidString(*value) {
			why = "not UTF-8"
		}
		if why != "" {
			v.refuseBind(i, key, quoted(*value), why)
			return ""
		}
		return *value
	}
	b.Link = text("link", r.Link, checkLinkName)
	b.User = text("user", r.User, checkUser)
	b.Interface = text("interface", r.Interface, func(s string) string {
		if routing.CheckInterfaceName(s) != nil {
			return "no name of an interface"
		}
		if s == routing.Loopback {
			return "all that this host sends comes by it"
		}
		return ""
	})
	b.Unit = text("unit", r.Unit, func(s string) string { return checkUnit(s, ".service", ".scope", ".socket") })
	b.Slice = text("slice", r.Slice, func(s string) string { return checkUnit(s, ".slice") })
	b.Cgroup = text("cgroup", r.Cgroup, checkCgroup)
	if r.Source != nil {
		selectors = append(selectors, "source")
		b.Source = v.bindSource(i, *r.Source)
	}
	if r.Mark != nil {
		selectors = append(selectors, "mark")
		b.Mark = v.bindMark(i, r.Mark)
	}
	if isWhole && r.Link == nil {
		v.failBind(i, "", "link is not set; want the interface or profile by which it leaves")
	}
	const all = "user, mark, interface, source, unit, slice or cgroup"
	switch {
	case len(selectors) == 0 && isWhole:
		v.failBind(i, "", "nothing is selected; want "+all)
	case len(selectors) > 1:
		v.failBind(i, selectors[1], fmt.Sprintf("%s selects already; want one of %s, and an entry for each", selectors[0], all))
	}
	if r.Unit != nil || r.Slice != nil || r.Cgroup != nil {
		v.bindSockets(i, r)
	}
	isForwarded := r.Interface != nil || r.Source != nil
	hasDNS := !isForwarded && r.Mark == nil
	b.DNS = hasDNS && b.Strict
	if r.DNS != nil {
		b.DNS = *r.DNS
		switch {
		case *r.DNS && !hasDNS:
			v.failBind(i, "dns", "queries can be led only for a user, unit, slice or cgroup; leave it out, or set it to false")
		case *r.DNS && !b.Strict && r.User != nil:
			// Names are led by marks, whose rules are strict: unbound, the link's servers could not be reached.
			v.failBind(i, "dns", "true needs strict = true; leave one of them out")
		}
	}
	if r.Inbound != nil {
		b.Inbound = Inbound(*r.Inbound)
		switch {
		case b.Inbound != Answer && b.Inbound != Deny:
			want, _ := allowed(bindList + ".inbound")
			v.failBind(i, "inbound", fmt.Sprintf("%s is not allowed; want %s%s", quoted(*r.Inbound), want, nearestWord(*r.Inbound, want)))
		case b.Inbound == Deny && !isForwarded:
			v.failBind(i, "inbound", "programs of this host always answer where they are asked; it is for interface and source")
		}
	}
	return b
}

// bindSockets checks what control groups cannot have: their sockets get a mark and servers of their link, and keep them.
func (v *validator) bindSockets(i int, r rawBind) {
	if r.Link != nil && routing.CheckInterfaceName(*r.Link) != nil {
		v.refuseBind(i, "link", quoted(*r.Link), "for unit, slice and cgroup it has at most 15 bytes and no space; name the interface")
	}
	for _, key := range []struct {
		name  string
		value *bool
	}{{"strict", r.Strict}, {"dns", r.DNS}} {
		if key.value != nil && !*key.value {
			v.failBind(i, key.name, "false is not possible for unit, slice and cgroup; leave it out")
		}
	}
}

func checkLinkName(s string) string {
	if s == "" || len(s) > maxName || strings.ContainsFunc(s, unicode.IsControl) {
		return "no name of an interface or profile"
	}
	return ""
}

func checkUser(s string) string {
	if u, numbered := (Bind{User: s}).Users(); numbered {
		if err := CheckUsers(u); err != nil {
			return err.Error()
		}
		return ""
	}
	switch {
	case s == "" || len(s) > maxName || strings.ContainsAny(s, ":,/\x00\n \t") || strings.ContainsAny(s[:1], "+-0123456789"):
		return "no name of a user"
	case isOurs(s):
		return ourselves
	case s == "root":
		return CheckUsers(routing.UIDRange{Set: true}).Error()
	default:
		return ""
	}
}

// checkUnit checks the name of a unit (systemd.unit(5)).
func checkUnit(s string, suffixes ...string) string {
	valid := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(`:-_.\@`, c)
	}
	suffix := path.Ext(s)
	known := false
	for _, x := range suffixes {
		known = known || suffix == x && len(s) > len(x)
	}
	switch {
	case !known:
		return "it does not end with " + strings.Join(suffixes, " or ")
	case len(s) > 255 || strings.ContainsFunc(s, func(c rune) bool { return !valid(c) }):
		return "no name of a unit"
	case s == "-.slice":
		return "everything is in it, and forwarded packets with it"
	case isOurs(s):
		return ourselves
	default:
		return ""
	}
}

// ourselves says why something cannot be bound that multihomed is in: its probes ask every link.
const ourselves = "multihomed itself is in it, and looks at every link"

// isOurs reports whether the processes of multihomed are in a unit or slice, or are a user's.
func isOurs(name string) bool {
	switch strings.TrimSuffix(name, ".service") {
	case "system.slice", "multihomed", "multihomed-prober", "multihomed-binder", "multihomed-failed":
		return true
	default:
		return false
	}
}

func checkCgroup(s string) string {
	clean := strings.Trim(strings.TrimPrefix(s, "/sys/fs/cgroup"), "/")
	switch {
	case clean == "":
		return "everything is in the root"
	case len(s) > maxCgroup || strings.ContainsFunc(s, unicode.IsControl):
		return "no path"
	case path.Clean(clean) != clean || strings.HasPrefix(clean, ".."):
		return "write it without . and .."
	case isOurs(path.Base(clean)):
		return ourselves
	default:
		return ""
	}
}

// maxCgroup bounds the path of a control group (PATH_MAX of limits.h).
const maxCgroup = 4096

func (v *validator) bindSource(i int, text string) netip.Prefix {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	switch {
	case !p.IsValid() || p.Addr().Is4In6():
		v.refuseBind(i, "source", quoted(text), "not a network")
	case p != p.Masked():
		v.refuseBind(i, "source", quoted(text), fmt.Sprintf("it has host bits: %v is meant", p.Masked()))
	case p.Bits() == 0:
		v.refuseBind(i, "source", quoted(text), "everything is in it")
	default:
		return p
	}
	return netip.Prefix{}
}

// bindMark reads a number, or VALUE/MASK as in `ip rule`.
func (v *validator) bindMark(i int, value any) routing.Mark {
	refuse := func(shown any, why string) routing.Mark {
		v.refuseBind(i, "mark", shown, why)
		return routing.Mark{}
	}
	mark := routing.Mark{Mask: math.MaxUint32}
	switch value := value.(type) {
	case int64:
		if value < 1 || value > math.MaxUint32 {
			return refuse(value, "")
		}
		mark.Value = uint32(value)
	case string:
		number, mask, masked := strings.Cut(value, "/")
		n, err := strconv.ParseUint(number, 0, 32)
		if err == nil && masked {
			var m uint64
			m, err = strconv.ParseUint(mask, 0, 32)
			mark.Mask = uint32(m)
		}
		if err != nil {
			return refuse(quoted(value), "")
		}
		mark.Value = uint32(n)
	default:
		v.failBind(i, "mark", misfit(value, bindList+".mark"))
		return routing.Mark{}
	}
	switch {
	case mark.Value == 0:
		return refuse(markText(mark), "packets without a mark have it")
	case mark.Value&^mark.Mask != 0:
		return refuse(markText(mark), "the value has bits outside of the mask")
	}
	return mark
}

// markText is a mark as `ip rule` has it.
func markText(m routing.Mark) string {
	if m.Mask == math.MaxUint32 {
		return fmt.Sprintf("%#x", m.Value)
	}
	return fmt.Sprintf("%#x/%#x", m.Value, m.Mask)
}

// ParseBinds reads a file that has entries of [[bind]] and nothing else; name is the file for
// error messages.
func ParseBinds(name string, data []byte) ([]Bind, error) {
	cfg, err := Parse(name, data)
	if err != nil {
		return nil, err
	}
	binds := cfg.Binds
	cfg.Binds = nil
	if !reflect.DeepEqual(cfg, Default()) {
		return nil, &Error{File: name, Message: "it has more than entries of [[bind]]; these belong into the configuration file"}
	}
	return binds, nil
}

// FormatBind is an entry as TOML, with a line feed at the end.
func FormatBind(b Bind) string {
	var out strings.Builder
	fmt.Fprintf(&out, "[[bind]]\nlink = %s\n", TOMLString(b.Link))
	s := b.Selector()
	fmt.Fprintf(&out, "%s = %s\n", s.Key, TOMLString(s.Value))
	if !b.Strict {
		out.WriteString("strict = false\n")
	}
	if !b.DNS && !b.IsForwarded() && b.Mark.Mask == 0 {
		out.WriteString("dns = false\n")
	}
	if b.Inbound == Deny {
		out.WriteString("inbound = \"deny\"\n")
	}
	return out.String()
}

// TOMLString writes a basic string (https://toml.io/en/v1.0.0#string).
func TOMLString(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}
