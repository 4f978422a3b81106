// Package bindrun runs a program whose sockets leave by one link: `multihomectl run`.
//
// The program gets a cgroup of its own, which multihomed-binder binds to the link. Then this process enters the cgroup and
// becomes the program (execve(2)), as env(1) and nice(1) do: no instruction of the program runs unbound, and signals, job control,
// the terminal and the exit status are the program's own, because nobody stands between it and who started it.
//
// Where that is: below the cgroup in which this process is, if it may make one there, which root and users with a
// delegated cgroup may; else in a transient scope of the user's service manager, as `systemd-run --user --scope` makes it. systemd
// removes a scope when it is empty. For the other case there is an attendant, a process of its own session that no program has for
// a child: it waits until the cgroup is empty and removes it. If it was killed, the next run does.
//
// Without the helper there is another way, which needs no right: a filter (seccomp(2)) that has an attendant open the IP sockets of
// the program, bound to the link's device. It covers less, and Warning says what.
package bindrun
