package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"multihomed/internal/config"
	"multihomed/internal/escape"
	"multihomed/internal/event"
	"multihomed/routing"
)

// problems logs each problem once when it appears, at its severity, and once when it is gone:
// `journalctl -p warning` shows the same as status.
type problems struct {
	log  *slog.Logger
	last map[about]routing.Problem
	// written counts the problems that were logged.
	written map[loggedProblem]uint64
}

// about identifies a problem: if only its text changes it is the same problem.
type about struct {
	code         routing.Code
	link, object string
}

// note takes all current problems.
func (p *problems) note(ctx context.Context, all []routing.Problem) {
	now := make(map[about]routing.Problem, len(all))
	for _, problem := range all {
		key := about{problem.Code, problem.Link, problem.Object}
		if problem.Code == config.FaultCode {
			key.object = "" // There is one configuration, whatever line is bad.
		}
		for n := 2; now[key] != (routing.Problem{}) && now[key] != problem; n++ {
			key.object = problem.Object + "#" + strconv.Itoa(n) // Two problems of one object.
		}
		now[key] = problem
		if p.last[key] != problem {
			p.write(ctx, levelOf(problem.Severity), event.Problem, problem, problem.Text, problem.Fix)
			p.count(problem)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(p.last), func(a, b about) int {
		return strings.Compare(a.link+"\n"+string(a.code)+"\n"+a.object, b.link+"\n"+string(b.code)+"\n"+b.object)
	}) {
		if _, still := now[key]; !still {
			was := p.last[key]
			p.write(ctx, slog.LevelInfo, event.Solved, was, solved(was), "")
		}
	}
	p.last = now
}

// count counts a problem that was logged.
func (p *problems) count(problem routing.Problem) {
	if p.written == nil {
		p.written = map[loggedProblem]uint64{}
	}
	p.written[loggedProblem{problem.Code, problem.Severity}]++
}

// again logs the problems of a code once more, though they are the same.
func (p *problems) again(code routing.Code) {
	maps.DeleteFunc(p.last, func(key about, _ routing.Problem) bool { return key.code == code })
}

// solved says that a problem is gone.
func solved(p routing.Problem) string {
	if p.Code == config.FaultCode {
		return "configuration accepted again"
	}
	return "no longer: " + p.Text
}

func (p *problems) write(ctx context.Context, level slog.Level, what event.Event, about routing.Problem, text, fix string) {
	attrs := []slog.Attr{event.Is(what), event.Field("code", string(about.Code))}
	if about.Link != "" {
		attrs = append(attrs, slog.String("interface", about.Link))
	}
	if about.Object != "" {
		attrs = append(attrs, event.Field("object", about.Object))
	}
	if fix != "" {
		attrs = append(attrs, slog.String("fix", fix))
	}
	p.log.LogAttrs(ctx, level, text, attrs...) //nolint:sloglint // the problem is the sentence
}

func levelOf(s routing.Severity) slog.Level {
	switch s {
	case routing.Error:
		return slog.LevelError
	case routing.Warning:
		return slog.LevelWarn
	default:
		return event.LevelNotice
	}
}

// suspect names the process behind a netlink port, empty if unknown. The first socket of a
// process has the process number as its port (netlink(7)).
func suspect(port uint32) string {
	if port == 0 || port > 1<<22 { // PID_MAX_LIMIT
		return ""
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", port))
	if err != nil {
		return fmt.Sprintf("process %d, which has ended", port)
	}
	return fmt.Sprintf("%s (process %d)", escape.Name(strings.TrimSpace(string(name))), port)
}

// summary is the line in `systemctl status`.
func summary(waiting string, all []routing.Problem) string {
	refused, errors := "", 0
	for _, p := range all {
		if p.Severity != routing.Error {
			continue
		}
		errors++
		if p.Code == config.FaultCode {
			refused = p.Text // It names the file.
		}
	}
	switch {
	case refused != "":
		return strings.ReplaceAll(refused, "\n", " ") // an assignment is one line
	case waiting != "":
		return "waiting: " + waiting
	case errors > 0:
		return fmt.Sprintf("%d problems, see multihomectl status", errors)
	default:
		return "every link has its own routing"
	}
}
