package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"multihomed/internal/lastgood"
	"multihomed/internal/lazy"
	"multihomed/routing"
)

// FaultCode names the problem that the configuration file is bad.
const FaultCode routing.Code = "configuration"

// A Loaded is the configuration to work with, whatever the file is like.
type Loaded struct {
	Config
	// Fault says what is wrong with the file, nil if it is the one in use.
	Fault *Fault
	// source is the file, and text its content; empty if there is none.
	source string
	text   []byte
	// usual is the directory for a copy.
	usual string
}

// A Fault says what is wrong with a configuration file, and what is used instead.
type Fault struct {
	// File is the configuration file, Err what is wrong with it.
	File string
	Err  error
	// Instead completes "in use instead: ...".
	Instead string
	// Known says that a last good configuration exists or existed.
	Known bool
	// Unusable says why a last good configuration is not used, nil if there is none
	// or it is used.
	Unusable error
	// Refused says that the daemon does not start with the file.
	Refused bool
	// Start is the command after which the corrected file is used. It is empty where a daemon
	// runs, which reads the file again at a reload.
	Start string
}

// Refuse says that the daemon does not start with the file: there is no last good configuration,
// and the kernel holds no rule of ours that somebody must maintain.
func (f *Fault) Refuse() {
	f.Refused = true
	f.Instead = "nothing: there is no last good configuration and no rule of multihomed in the kernel, so the host routes by its main table alone"
}

// Find returns the configuration of a file. If that is bad, it returns the last good one of
// the same file, and if there is none, the defaults.
//
// It looks for the last good one in the state_dir of the file, however bad the rest of the
// file is, and in the default directory, which has a copy: a bad file may name another
// state_dir than the good one did.
//
// It is for the daemon. Everybody else calls [FindHere].
func Find(path string) Loaded { return find(path, Default().StateDir) }

func find(path, usual string) Loaded { return findFrom(path, usual, "") }

// findFrom is find where a daemon works with a state directory, if it is not empty: what that
// directory has comes before all others.
func findFrom(path, usual, works string) Loaded {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	cfg, text, err := load(path)
	if err == nil {
		return Loaded{Config: cfg, source: path, text: text, usual: usual}
	}
	fault := &Fault{File: path, Err: err}
	loaded := Loaded{Config: Default(), Fault: fault, source: path, usual: usual}
	var best lastgood.Saved
	var damaged []error
	directories := stateDirectories(text, usual)
	if works != "" {
		directories = slices.Insert(slices.DeleteFunc(directories, func(d string) bool { return d == works }), 0, works)
	}
	for _, directory := range directories {
		saved, err := lastgood.Read(directory, path)
		var cfg Config
		if err == nil {
			if cfg, err = Parse(saved.Path, saved.Text); err != nil {
				err = &lastgood.DamagedError{Path: saved.Path, Cause: err}
			}
		}
		switch {
		case errors.Is(err, lastgood.ErrNone):
		case err != nil:
			damaged = append(damaged, err)
		case best.Path == "" || saved.Since.After(best.Since):
			best, loaded.Config = saved, cfg
		}
		if best.Path != "" && directory == works {
			break
		}
	}
	fault.Known = best.Path != "" || len(damaged) > 0
	fault.Unusable = errors.Join(damaged...)
	switch {
	case best.Path != "":
		fault.Instead = fmt.Sprintf("the last good configuration, of %s (%s)", best.Since.Local().Format(time.DateTime), best.Path)
	case len(damaged) > 0:
		fault.Instead = "the defaults, because " + oneLine(fault.Unusable)
	default:
		fault.Instead = "the defaults, because there is no last good configuration"
	}
	return loaded
}

// Keep saves the configuration as the last good one. Call it when the configuration is
// active.
func (l Loaded) Keep(now time.Time) error {
	if l.Fault == nil {
		return l.save(now)
	}
	return nil
}

func (l Loaded) save(now time.Time) error {
	err := lastgood.Save(l.StateDir, l.source, l.text, now)
	if l.StateDir != l.usual {
		// Nobody looks in a directory that does not exist.
		if _, missing := os.Stat(l.usual); missing == nil {
			err = errors.Join(err, lastgood.Save(l.usual, l.source, l.text, now))
		}
	}
	return err
}

// stateDirectories are where a last good configuration may be.
func stateDirectories(text []byte, usual string) []string {
	if named, is := stateDirOf(text); is && named != usual {
		return []string{usual, named}
	}
	return []string{usual}
}

var stateDirLine = lazy.Regexp(`(?m)^[ \t]*state_dir[ \t]*=[ \t]*(?:"([^"\n]*)"|'([^'\n]*)')`)

// stateDirOf reads this key of a file that need not be valid TOML.
func stateDirOf(text []byte) (string, bool) {
	found := stateDirLine().FindSubmatch(text)
	if found == nil {
		return "", false
	}
	named := string(bytes.Join(found[1:], nil))
	return named, filepath.IsAbs(named)
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// errors are the single mistakes of the file.
func (f *Fault) errors() []error { return Mistakes(f.Err) }

// Mistakes are the single errors of a file that was read, each of which names its place.
func Mistakes(err error) []error {
	joined, is := err.(interface{ Unwrap() []error })
	if !is {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, Mistakes(e)...)
	}
	return all
}

// mostShown bounds how many further mistakes a problem names.
const mostShown = 5

// Problem is the fault as status shows it: the file with the line of the first mistake as
// the object, all of them with key and what is allowed as the text.
func (f *Fault) Problem() routing.Problem {
	all := f.errors()
	p := routing.ProblemOf(FaultCode, routing.Error, "", all[0])
	p.Object = f.File
	lines := linesOf(all)
	if found, is := errors.AsType[*Error](all[0]); is {
		if found.Line > 0 {
			p.Object = fmt.Sprintf("%s:%d", f.File, found.Line)
		}
		p.Fix = "" // It names all lines.
	}
	for i, more := range all[1:] {
		if i == mostShown {
			p.Text += fmt.Sprintf("; and %d more, see multihomectl config check", len(all)-1-i)
			break
		}
		p.Text += "; " + inFile(more)
	}
	if found, is := errors.AsType[*RestartError](all[0]); is {
		p.Object = found.place()
		p.Text, p.Fix = "the configuration is refused: "+found.text()+"; in use instead: "+f.Instead, found.fix()
		return p
	}
	p.Text = "the configuration is refused: " + p.Text + "; in use instead: " + f.Instead
	p.Fix = cmp.Or(p.Fix, "correct "+f.place(lines)) + ", then: " + cmp.Or(f.Start, "systemctl reload multihomed")
	return p
}

// linesOf are the lines of mistakes, each once.
func linesOf(all []error) []int {
	var lines []int
	for _, err := range all {
		if found, is := errors.AsType[*Error](err); is && found.Line > 0 {
			lines = append(lines, found.Line)
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// place names the file with the lines that have to be corrected.
func (f *Fault) place(lines []int) string {
	switch len(lines) {
	case 0:
		return f.File
	case 1:
		return fmt.Sprintf("%s:%d", f.File, lines[0])
	}
	shown := lines[:min(len(lines), mostShown+1)]
	last := fmt.Sprint(shown[len(shown)-1])
	if more := len(lines) - len(shown); more > 0 {
		shown, last = append(slices.Clone(shown), 0), fmt.Sprintf("%d more", more)
	}
	var b strings.Builder
	for i, line := range shown[:len(shown)-1] {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, line)
	}
	return fmt.Sprintf("lines %s and %s of %s", b.String(), last, f.File)
}

// inFile is a further mistake, without the name of the file.
func inFile(err error) string {
	found, is := errors.AsType[*Error](err)
	if !is {
		return err.Error()
	}
	text := found.Message
	if found.Key != "" {
		text = found.Key + ": " + text
	}
	if found.Line > 0 {
		text = fmt.Sprintf("line %d: %s", found.Line, text)
	}
	return text
}

func (f *Fault) Error() string {
	p := f.Problem()
	return p.String()
}

func (f *Fault) Unwrap() error { return f.Err }

// Refused is the fault of a configuration while the previous one stays active.
func Refused(path string, err error) *Fault {
	return &Fault{File: path, Err: err, Instead: "the previous configuration", Known: true}
}

// load is Load with the text of the file, which it also returns if the file is bad.
func load(path string) (Config, []byte, error) {
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil, nil
	}
	if err != nil {
		return Config{}, nil, err
	}
	cfg, err := Parse(path, data)
	return cfg, data, err
}
