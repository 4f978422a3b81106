package cleanup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
	"multihomed/routing"
)

// HistoryName is the file in the state directory that lists the configurations whose
// objects the kernel may still hold.
const HistoryName = "history.json"

// maxHistory bounds that file, in bytes.
const maxHistory = 1 << 20

// An Era is the part of a configuration that identifies our objects: the tables and the
// group of uplinks.
type Era struct {
	First       routing.TableID `json:"first_table"`
	Last        routing.TableID `json:"last_table"`
	UplinkGroup uint32          `json:"uplink_group"`
}

// EraOf is what a policy leaves in the kernel.
func EraOf(p routing.Policy) Era {
	return Era{First: p.Tables.First, Last: p.Tables.Last, UplinkGroup: p.UplinkGroup}
}

// Tables is the range of an era.
func (e Era) Tables() routing.TableRange { return routing.TableRange{First: e.First, Last: e.Last} }

// sound reports whether an era can be ours: we never use the kernel's own tables or group 0,
// and no configuration allows more tables.
func (e Era) sound() bool {
	return e.First > 0 && e.Last >= e.First && e.Last-e.First < maxTables &&
		(e.First > routing.TableLocal || e.Last < routing.TableDefault) && e.UplinkGroup != 0
}

// maxTables is more than a configuration may ask for.
const maxTables = 1 << 20

// ReadEras reads the configurations in the history, the last one last. It returns none if no
// daemon ever ran with this state directory.
func ReadEras(state string) ([]Era, error) {
	path := filepath.Join(state, HistoryName)
	data, err := fsutil.ReadFile(path, maxHistory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading earlier configurations: %w", err)
	}
	var all, sound []Era
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("reading earlier configurations in %s: %w", path, err)
	}
	for _, e := range all {
		if e.sound() {
			sound = append(sound, e)
		}
	}
	return sound, nil
}

// WriteEras replaces what ReadEras reads.
func WriteEras(state string, eras []Era) error {
	data, err := json.Marshal(eras)
	if err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	if err := ownership.WriteFile(filepath.Join(state, HistoryName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	return nil
}
