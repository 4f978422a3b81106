package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Cgroup is the name of the machine's control group.
func (m *Machine) Cgroup() string { return filepath.Base(m.cgroup.path) }

// CgroupExists reports whether there is still a control group of that name.
func CgroupExists(name string) (bool, error) {
	hierarchy, err := mountCgroup()
	if err != nil {
		return false, err
	}
	defer hierarchy.Close()
	own, err := ownCgroup()
	if err != nil {
		return false, err
	}
	_, err = os.Stat(filepath.Join(fdPath(hierarchy), own, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
