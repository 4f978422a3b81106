package orders

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/offswitch"
	"multihomed/internal/status"
	"multihomed/internal/suggest"
	"multihomed/routing"
)

// SelectorKeys are the keys of [[bind]] that select.
func SelectorKeys() []string {
	return []string{"user", "mark", "interface", "source", "unit", "slice", "cgroup"}
}

// ParseSelector reads KEY=VALUE. An error is a [WordError].
func ParseSelector(word string) (config.Selector, error) {
	key, value, is := strings.Cut(word, "=")
	if keys := SelectorKeys(); !is || !slices.Contains(keys, key) {
		return config.Selector{}, wrong("%q is no selector%s; want one of %s=VALUE", escape.Text(word), suggest.Question(key, keys), strings.Join(keys, "=, "))
	}
	return config.Selector{Key: key, Value: value}, nil
}

// A Binding is what is to be bound. What is nil or empty is as the configuration has it by itself.
type Binding struct {
	Link     string
	Selector config.Selector
	Strict   *bool
	DNS      *bool
	Inbound  string
	// Runtime says that it lasts until the next boot.
	Runtime bool
}

// Entry makes an entry of it. An error is a [WordError], or says that the configuration, which is in
// a file, binds it.
func (b Binding) Entry(cfg config.Config, file string) (config.Bind, error) {
	text := fmt.Sprintf("[[bind]]\nlink = %s\n%s = %s\n", config.TOMLString(b.Link), b.Selector.Key, config.TOMLString(b.Selector.Value))
	if b.Strict != nil {
		text += fmt.Sprintf("strict = %t\n", *b.Strict)
	}
	if b.DNS != nil {
		text += fmt.Sprintf("dns = %t\n", *b.DNS)
	}
	if b.Inbound != "" {
		text += fmt.Sprintf("inbound = %s\n", config.TOMLString(b.Inbound))
	}
	all, err := config.ParseBinds("", []byte(text))
	if err != nil {
		return config.Bind{}, wrong("%s", mistakes(err))
	}
	wanted := all[0]
	if o, meets := wanted.Meeting(cfg.Binds); meets {
		return wanted, fmt.Errorf("the configuration binds %s to %s; to fix: change [[bind]] in %s", escape.Text(o.Selector().String()), escape.Text(o.Link), file)
	}
	if err := wanted.CheckMark(cfg.Answers.MarkMask); err != nil {
		return wanted, wrong("mark: %v", err)
	}
	return wanted, nil
}

// mistakes says what is wrong with an entry that was made of the command line, without the places
// of a file that does not exist.
func mistakes(err error) string {
	var all []string
	for _, e := range config.Mistakes(err) {
		found, is := errors.AsType[*config.Error](e)
		if !is {
			all = append(all, e.Error())
			continue
		}
		key, _, _ := strings.Cut(strings.TrimPrefix(found.Key, "bind."), " ")
		if key != "" && key != "bind" {
			key += ": "
		} else {
			key = ""
		}
		all = append(all, key+found.Message)
	}
	return strings.Join(all, "; ")
}

// Bind adds an entry on disk, or changes the one that selects the same.
func Bind(d offswitch.Directories, wanted config.Bind, runtime bool) error {
	origin, other := binding.Added, binding.Runtime
	if runtime {
		origin, other = other, origin
	}
	present, err := binding.Load(d)
	if err != nil {
		return err
	}
	for _, e := range present {
		if o, meets := wanted.Meeting([]config.Bind{e.Bind}); meets && (e.Origin == other || o.Selector() != wanted.Selector()) {
			return fmt.Errorf("%s is bound to %s already; to fix: multihomectl bind remove %s", escape.Text(o.Selector().String()), escape.Text(o.Link), quote(o.Selector().String()))
		}
	}
	return binding.Change(d, origin, func(list []config.Bind) ([]config.Bind, error) {
		at := slices.IndexFunc(list, func(b config.Bind) bool { return b.Selector() == wanted.Selector() })
		if at >= 0 {
			list[at] = wanted // Another link, or other words.
			return list, nil
		}
		if len(list) >= config.MostBinds {
			return nil, fmt.Errorf("%d bindings are kept already, and no more are allowed; to fix: remove one of them, see multihomectl bind list", config.MostBinds)
		}
		return append(list, wanted), nil
	})
}

// isOwnMark reports whether a selector is a mark that multihomed itself gives to sockets.
func isOwnMark(s config.Selector, ours routing.MarkMask) bool {
	value, _, _ := strings.Cut(s.Value, "/")
	mark, err := strconv.ParseUint(value, 0, 32)
	return s.Key == "mark" && err == nil && uint32(mark)&uint32(ours) != 0
}

// FindBound finds the entry that a selector names.
func FindBound(cfg config.Config, s config.Selector, file string) (binding.Entry, error) {
	present, err := binding.Load(cfg.Switch())
	if err != nil {
		return binding.Entry{}, err
	}
	at := slices.IndexFunc(present, func(e binding.Entry) bool { return same(e.Selector(), s) })
	if at >= 0 {
		return present[at], nil
	}
	if slices.ContainsFunc(cfg.Binds, func(b config.Bind) bool { return same(b.Selector(), s) }) {
		return binding.Entry{}, fmt.Errorf("the configuration binds %s; to fix: remove its [[bind]] from %s, then: systemctl reload multihomed", s, file)
	}
	if isOwnMark(s, cfg.Answers.MarkMask) {
		return binding.Entry{}, fmt.Errorf("such marks are multihomed's own, and sockets have them that other bindings and multihomectl run have bound: %s stays until the next boot", s)
	}
	words := make([]string, 0, len(present))
	for _, e := range present {
		words = append(words, e.Selector().String())
	}
	return binding.Entry{}, fmt.Errorf("%s is not bound%s; to see what is: multihomectl bind list", escape.Text(s.String()), suggest.Question(s.String(), words))
}

// Unbind removes an entry on disk.
func Unbind(d offswitch.Directories, found binding.Entry) error {
	return binding.Change(d, found.Origin, func(list []config.Bind) ([]config.Bind, error) {
		return slices.DeleteFunc(list, func(b config.Bind) bool { return b.Selector() == found.Selector() }), nil
	})
}

// SentenceBound says that something is bound. Row is what the status says of it, zero if it says nothing.
func SentenceBound(wanted config.Bind, row status.Binding) string {
	return fmt.Sprintf("%s is bound to %s", escape.Text(wanted.Selector().String()), escape.Text(wanted.Link)) + because(row)
}

// because says what an entry waits for.
func because(row status.Binding) string {
	switch row.State {
	case status.BindingActive:
		if row.Why != "" {
			return ", but " + escape.Text(row.Why)
		}
		return ""
	case "":
		return ""
	case status.BindingDown:
		return ", which is down: " + escape.Text(row.Why)
	case status.BindingRefused:
		return ", which has no effect: " + escape.Text(row.Why)
	default:
		return ", and waits: " + escape.Text(row.Why)
	}
}

// SentenceUnbound says that something is bound no longer.
func SentenceUnbound(found binding.Entry) string {
	return fmt.Sprintf("%s is no longer bound to %s", escape.Text(found.Selector().String()), escape.Text(found.Link)) + stays(found.Selector())
}

// RowOf finds what the status says of a selector, the zero Binding if nothing.
func RowOf(rows []status.Binding, s config.Selector) status.Binding {
	var row status.Binding
	for _, r := range rows {
		if r.Selector == s.Key && r.Value == escape.Text(s.Value) {
			row = r
		}
	}
	return row
}

// stays says what keeps the programs that were attached to its cgroup: they stay as long as that exists.
func stays(s config.Selector) string {
	switch s.Key {
	case "unit":
		return "; if it runs, it stays bound until it ends: systemctl restart " + quote(s.Value)
	case "slice":
		return "; if it runs, it stays bound until it ends: systemctl stop " + quote(s.Value)
	case "cgroup":
		return "; if it exists, it stays bound until it is removed"
	default:
		return ""
	}
}

// same compares selectors; a mark may be written as a number of any base.
func same(a, written config.Selector) bool {
	if a == written {
		return true
	}
	read, err := config.ParseBinds("", []byte(fmt.Sprintf("[[bind]]\nlink = \"x\"\n%s = %s\n", written.Key, config.TOMLString(written.Value))))
	return err == nil && read[0].Selector() == a
}
