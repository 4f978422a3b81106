package config

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"multihomed/internal/lazy"
)

// Salvage reads a configuration for the removal of what was made under it. If the file is
// bad, why says so, and cfg is the default except for what single lines still tell: the
// directories, the tables and the group of uplinks.
func Salvage(path string) (cfg Config, why error) {
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Default(), err
	}
	if cfg, err = Parse(path, data); err == nil {
		return cfg, nil
	}
	return salvage(data), err
}

// assignment is a line that sets one of these keys.
var assignment = lazy.Regexp(`^\s*(state_dir|runtime_dir|uplink_group|first|last)\s*=`)

func salvage(data []byte) Config {
	cfg := Default()
	var tables []string
	section := ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section, _, _ = strings.Cut(line, "#")
			section = strings.TrimSpace(section)
			continue
		}
		found := assignment().FindStringSubmatch(line)
		if found == nil {
			continue
		}
		switch key := found[1]; {
		case (key == "first" || key == "last") && section == "[tables]":
			tables = append(tables, line)
		case section == "" && key != "first" && key != "last":
			part, err := Parse("", []byte(line))
			if err != nil {
				continue
			}
			switch key {
			case "state_dir":
				cfg.StateDir = part.StateDir
			case "runtime_dir":
				cfg.RuntimeDir = part.RuntimeDir
			case "uplink_group":
				cfg.UplinkGroup = part.UplinkGroup
			}
		}
	}
	if part, err := Parse("", fmt.Appendf(nil, "[tables]\n%s\n", strings.Join(tables, "\n"))); err == nil {
		cfg.Tables = part.Tables
	}
	return cfg
}
