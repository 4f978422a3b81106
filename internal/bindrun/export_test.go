package bindrun

// What tests look at.
var (
	Filter  = filter
	UserBus = userBus
)

// Homes are the directories of a cgroup by the files of proc(5).
func Homes(own, mounts string) (out []string, err error) {
	all, err := homesOf(own, mounts)
	for _, h := range all {
		out = append(out, h.path)
	}
	return out, err
}

// ErrNoCgroup says that this process cannot get a cgroup.
var ErrNoCgroup = errNoCgroup
