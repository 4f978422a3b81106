package note

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"multihomed/internal/fsutil"
	"multihomed/internal/ownership"
	"multihomed/nm"
)

// profiles is the name of the directory in the runtime directory that holds, for each
// interface, what root could read of a profile that the service's user may not read.
const profiles = "profiles"

// maxProfile bounds a file, in bytes.
const maxProfile = 256 << 10

// readTimeout bounds how long NetworkManager may take to return a profile.
const readTimeout = 2 * time.Second

// Passed returns the reader of profiles that were passed on, for [nm.Options].
func Passed(runtime string) func(name string) (nm.Passed, bool) {
	return func(name string) (nm.Passed, bool) {
		p, err := readProfile(runtime, name)
		return p, err == nil
	}
}

func readProfile(runtime, name string) (p nm.Passed, err error) {
	data, err := fsutil.ReadFileNoFollow(filepath.Join(runtime, profiles, profileFile(name)), maxProfile)
	if err != nil {
		return nm.Passed{}, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return nm.Passed{}, err
	}
	return p, p.Validate()
}

func profileFile(name string) string { return url.QueryEscape(name) + ".json" }

// pass writes the profile of an interface if only root can read it, and otherwise removes
// what was written. If NetworkManager does not answer nothing changes.
func pass(ctx context.Context, runtime, name string) error {
	if os.Geteuid() != 0 {
		return nil // Such a user can read no more than the service.
	}
	p, restricted, err := nm.ReadPassed(ctx, nm.Options{CallTimeout: readTimeout}, name)
	switch {
	case err != nil:
		return nil //nolint:nilerr // see above
	case !restricted:
		return forgetProfile(runtime, name)
	}
	doing := func(err error) error { return fmt.Errorf("passing on the profile of %s: %w", name, err) }
	data, err := json.Marshal(p)
	if err != nil {
		return doing(err)
	}
	if err := ownership.MakeDirectory(filepath.Join(runtime, profiles)); err != nil {
		return doing(err)
	}
	directory, err := fsutil.OpenDirectoryIn(runtime, profiles)
	if err != nil {
		return doing(err)
	}
	err = ownership.WriteFileIn(directory, profileFile(name), append(data, '\n'), 0o644)
	if err = errors.Join(err, directory.Close()); err != nil {
		return doing(err)
	}
	return nil
}

// forgetProfile removes the profile of an interface that was passed on.
func forgetProfile(runtime, name string) error {
	directory, err := fsutil.OpenDirectoryIn(runtime, profiles)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = directory.Remove(profileFile(name))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		err = errors.Join(err, directory.Close())
	}
	if err != nil {
		return fmt.Errorf("forgetting the profile of %s: %w", name, err)
	}
	return nil
}
