package offswitch

import (
	"math"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// Who is the user behind this process: SUDO_USER of sudo(8), else the user that logged in
// (loginuid, proc(5)), else the user of the process.
func Who(env func(string) string) string {
	if name := env("SUDO_USER"); plain(name) {
		return name
	}
	if data, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		// (uid_t)-1: nobody logged in, as for a service.
		uid, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
		if err == nil && uid != math.MaxUint32 {
			return named(strconv.FormatUint(uid, 10))
		}
	}
	return named(strconv.Itoa(os.Getuid()))
}

// UserName is the name of a user, "uid 1000" for one without a name.
func UserName(uid uint32) string { return named(strconv.FormatUint(uint64(uid), 10)) }

func named(uid string) string {
	if u, err := user.LookupId(uid); err == nil && plain(u.Username) {
		return u.Username
	}
	return "uid " + uid
}

// plain reports whether a name can be shown as it is.
func plain(name string) bool {
	if name == "" || len(name) > 64 {
		return false
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
