package cgroups

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/escape"
)

// Mount is where systemd mounts cgroups.
const Mount = "/sys/fs/cgroup"

// A Selector names cgroups that may or may not exist. The zero Selector selects none.
type Selector struct {
	kind kind
	name string
}

type kind uint8

const (
	nothing kind = iota
	unit
	slice
	path
)

// Limits of names, in bytes: that of a file's name, and that of a path (NAME_MAX and PATH_MAX in linux/limits.h; UNIT_NAME_MAX of
// systemd is the former).
const (
	maxName = 255
	maxPath = 4095
)

// Suffixes of units. Those of the others have no processes.
const (
	sliceSuffix   = ".slice"
	serviceSuffix = ".service"
)

func unitSuffixes() []string { return []string{serviceSuffix, ".scope", ".socket", ".mount", ".swap"} }

// processless are suffixes of units that have no cgroup.
func processless() []string {
	return []string{".target", ".timer", ".path", ".device", ".automount"}
}

// Unit selects the cgroups of a unit by its name, as systemctl(1) shows it: of the system's manager, and of each
// user's. The name of a template, such as a@.service, selects all its instances.
func Unit(name string) (Selector, error) {
	switch {
	case strings.HasSuffix(name, sliceSuffix):
		return Selector{}, fmt.Errorf("%q is a slice; to fix: write slice = %q instead of unit", name, name)
	case hasOneOf(name, processless()):
		return Selector{}, fmt.Errorf("%q has no processes; to fix: name the service that it starts", escape.Name(name))
	case isUnitName(name) && !hasOneOf(name, unitSuffixes()):
		return Selector{}, fmt.Errorf("%q is not the name of a unit; to fix: write its suffix, for example %q", name, name+serviceSuffix)
	case !isUnitName(name) || slices.Contains(unitSuffixes(), name) || strings.HasPrefix(name, "@"):
		return Selector{}, fmt.Errorf("%q is not the name of a unit; to fix: write it as systemctl shows it, for example nginx.service", escape.Name(name))
	}
	return Selector{unit, name}, nil
}

// Slice selects the cgroups of a slice, with everything in it: of the system's manager, and of each user's.
func Slice(name string) (Selector, error) {
	switch {
	case name == "-"+sliceSuffix:
		return Selector{}, fmt.Errorf("%q is the whole host; to fix: name a slice in it, for example user.slice", name)
	case isUnitName(name) && hasOneOf(name, unitSuffixes()):
		return Selector{}, fmt.Errorf("%q is no slice; to fix: write unit = %q instead of slice", name, name)
	case chain(name) == nil:
		return Selector{}, fmt.Errorf("%q is not the name of a slice; to fix: write it as systemd-cgls shows it, for example user-1000.slice", escape.Name(name))
	}
	return Selector{slice, name}, nil
}

// Path selects one cgroup by its directory, below /sys/fs/cgroup, or as /proc/PID/cgroup shows it.
func Path(name string) (Selector, error) {
	below, _ := strings.CutPrefix(name+"/", Mount+"/")
	below, _ = strings.CutPrefix(below, unified+"/")
	below = strings.Trim(below, "/")
	refusal := func(why string) error {
		return fmt.Errorf("the cgroup %q %s; to fix: write its directory below %s, as systemd-cgls shows it", escape.Name(name), why, Mount)
	}
	switch {
	case len(name) > maxPath:
		return Selector{}, fmt.Errorf("the path of a cgroup is %d bytes long; to fix: name a cgroup above it, at most %d", len(name), maxPath)
	case below == "":
		return Selector{}, refusal("is the whole host")
	case strings.ContainsFunc(below, isControl):
		return Selector{}, refusal("has a control character in its name")
	}
	for part := range strings.SplitSeq(below, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return Selector{}, refusal("has a part that is empty, or leads elsewhere")
		case len(part) > maxName:
			return Selector{}, refusal("has a part of more than " + strconv.Itoa(maxName) + " bytes")
		}
	}
	return Selector{path, below}, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// String is the selector as the configuration has it.
func (s Selector) String() string {
	switch s.kind {
	case unit:
		return "unit " + s.name
	case slice:
		return "slice " + s.name
	case path:
		return "cgroup /" + escape.Name(s.name)
	case nothing:
	}
	return "nothing"
}

// Anew says how to have its cgroup made anew.
func (s Selector) Anew() string {
	if s.kind == unit && !s.isTemplate() {
		return "systemctl restart " + s.name
	}
	return "restart what runs in it"
}

func (s Selector) isTemplate() bool {
	return strings.HasSuffix(s.name[:strings.LastIndexByte(s.name, '.')], "@")
}

// at says whether the cgroup at a path is selected, and whether one that is may be below it. The path is that of the
// directory from the root of cgroups, in parts.
func (s Selector) at(parts []string) (is, above bool) {
	own, isOwn := ofUser(parts)
	switch s.kind {
	case unit:
		is = s.isUnit(parts) || isOwn && s.isUnit(own)
		above = nest(parts) || isOwn && nest(own)
	case slice:
		way := chain(s.name)
		is = slices.Equal(parts, way) || isOwn && slices.Equal(own, way)
		above = leads(parts, way) || isOwn && leads(own, way) || len(parts) <= 2 && leadsToUser(parts)
	case path:
		way := split(s.name)
		is, above = slices.Equal(parts, way), leads(parts, way)
	case nothing:
	}
	return is, above
}

// leads reports whether a way goes through a place, and on.
func leads(place, way []string) bool {
	return len(place) < len(way) && slices.Equal(place, way[:len(place)])
}

// isUnit reports whether a path below a manager's directory is one of the unit: in the directories of any slices (Slice= in
// systemd.resource-control(5)).
func (s Selector) isUnit(parts []string) bool {
	if len(parts) == 0 {
		return false
	}
	last := len(parts) - 1
	return s.isNamed(plain(parts[last])) && nest(parts[:last])
}

func (s Selector) isNamed(name string) bool {
	if !s.isTemplate() {
		return name == s.name
	}
	prefix, suffix, _ := strings.Cut(s.name, "@")
	instance, is := strings.CutPrefix(name, prefix+"@")
	return is && strings.HasSuffix(instance, suffix) && instance != suffix
}

// ofUser cuts the directory of a user's manager off: user.slice/user-N.slice/user@N.service.
func ofUser(parts []string) (own []string, is bool) {
	if len(parts) < 3 || !leadsToUser(parts[:2]) {
		return nil, false
	}
	uid, _ := userOf(parts[1])
	return parts[3:], parts[2] == "user@"+uid+serviceSuffix
}

// leadsToUser reports whether a path is the start of that of a user's manager.
func leadsToUser(parts []string) bool {
	if len(parts) > 0 && parts[0] != "user.slice" {
		return false
	}
	if len(parts) < 2 {
		return true
	}
	_, is := userOf(parts[1])
	return is
}

// userOf is the number in user-N.slice.
func userOf(part string) (uid string, is bool) {
	uid, is = strings.CutPrefix(part, "user-")
	uid, suffixed := strings.CutSuffix(uid, sliceSuffix)
	n, err := strconv.ParseUint(uid, 10, 32)
	return uid, is && suffixed && err == nil && strconv.FormatUint(n, 10) == uid
}

// nest reports whether a path is one of slices: a-b.slice is in a.slice (systemd.slice(5)).
func nest(parts []string) bool {
	within := ""
	for _, part := range parts {
		name, is := strings.CutSuffix(plain(part), sliceSuffix)
		last, inside := strings.CutPrefix(name, within)
		if !is || !inside || last == "" || strings.Contains(last, "-") {
			return false
		}
		within = name + "-"
	}
	return true
}

// chain is the path of a slice, nil if it is not the name of one.
func chain(name string) []string {
	stem, is := strings.CutSuffix(name, sliceSuffix)
	if !is || !isUnitName(name) || strings.Contains(name, "@") {
		return nil
	}
	var way []string
	for at := range len(stem) + 1 {
		if at < len(stem) && stem[at] != '-' {
			continue
		}
		if at == 0 || stem[at-1] == '-' {
			return nil // A dash at the start, at the end, or behind another one.
		}
		way = append(way, directory(stem[:at]+sliceSuffix))
	}
	return way
}

// directory is the name of a unit's directory: one that looks like a file of the kernel's gets an underscore in front
// (cg_escape in systemd's src/basic/cgroup-util.c).
func directory(name string) string {
	if strings.HasPrefix(name, "_") || strings.HasPrefix(name, ".") || hasController(name) {
		return "_" + name
	}
	return name
}

// plain is the name of the unit that has a directory.
func plain(directory string) string {
	name, _ := strings.CutPrefix(directory, "_")
	return name
}

func hasController(name string) bool {
	first, _, _ := strings.Cut(name, ".")
	return slices.Contains([]string{"cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"}, first)
}

func hasOneOf(name string, suffixes []string) bool {
	return slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}

// isUnitName reports whether systemd takes a name, of any suffix (unit_name_is_valid; systemd.unit(5)).
func isUnitName(name string) bool {
	return name != "" && len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(`:-_.\@`, r)
	})
}

// split is a path in parts.
func split(path string) []string { return strings.Split(path, "/") }
