package config

import (
	"reflect"
	"strings"
)

// Keys lists every key that a file may hold, dotted, from the raw struct.
func Keys() []string { return keysOf(reflect.TypeFor[raw](), "") }

func keysOf(t reflect.Type, prefix string) (keys []string) {
	for f := range t.Fields() {
		name := prefix + strings.Split(f.Tag.Get("toml"), ",")[0]
		keys = append(keys, name)
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, keysOf(inner, name+".")...)
		}
	}
	return keys
}

// SpecKeys lists the keys that error messages know.
func SpecKeys() (keys []string) {
	for _, s := range specs() {
		keys = append(keys, s.key)
	}
	return keys
}

// FindWith is Find with another usual directory.
var FindWith = find

// InstalledAs is whether there is a NetworkManager, on a host where it has another place.
var InstalledAs = Presence.installed

// Allowed is what an error message says of a key, DurationBounds what is accepted of failover.KEY.
var (
	Allowed        = allowed
	DurationBounds = durationBounds
)
