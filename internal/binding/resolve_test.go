package binding_test

import (
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"multihomed/internal/binding"
	"multihomed/internal/config"
	"multihomed/routing"
)

func entries(t *testing.T, origin binding.Origin, text string) []binding.Entry {
	t.Helper()
	binds, err := config.ParseBinds("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var out []binding.Entry
	for _, b := range binds {
		out = append(out, binding.Entry{Bind: b, Origin: origin})
	}
	return out
}

// TestResolve: who comes first wins, a user that does not exist waits, and control groups are bound
// by the mark of their link.
func TestResolve(t *testing.T) {
	t.Parallel()
	all := slices.Concat(
		entries(t, binding.Runtime, "[[bind]]\nlink='wan9'\nuser='1500'\n[[bind]]\nlink='wan2'\nunit='a.service'\n"),
		entries(t, binding.Added, "[[bind]]\nlink='wan8'\nuser='1000-1999'\n[[bind]]\nlink='wan1'\nuser='bonita'\n[[bind]]\nlink='wan1'\nuser='toor'\n"),
		entries(t, binding.Configured, "[[bind]]\nlink='wan1'\nuser='alice'\n[[bind]]\nlink='wan1'\nslice='b.slice'\n"),
	)
	held := []binding.Held{{Link: "wan2", Number: 3}, {Link: "wan1", Number: 1}}
	bindings, states := binding.Resolve(binding.Facts{
		Entries: all, Users: map[string]uint32{"alice": 1001, "toor": 0}, Held: held, Mask: routing.DefaultMarkMask,
	})
	var got []string
	for _, s := range states {
		got = append(got, s.Selector().String()+": "+s.Refused+s.Waits)
	}
	want := []string{
		"user=alice: ", "slice=b.slice: ", "user=1000-1999: ", "user=bonita: there is no user bonita",
		"user=toor: user toor: packets that this host forwards count as root's, and would be bound with them",
		"user=1500: user=1000-1999 is bound to wan8 already", "unit=a.service: ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("states:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if fix := states[3].Fix; fix != "create the user, or: multihomectl bind remove user=bonita" {
		t.Errorf("the fix is %q", fix)
	}
	wanted := []routing.Binding{
		{Name: "user alice", Users: routing.UIDRange{Set: true, First: 1001, Last: 1001}, LinkName: "wan1", Strict: true},
		{Name: "user 1000-1999", Users: routing.UIDRange{Set: true, First: 1000, Last: 1999}, LinkName: "wan8", Strict: true},
		{Name: "sockets bound to wan2", Mark: routing.Mark{Value: 0x83000000, Mask: 0xff000000}, LinkName: "wan2", Strict: true},
		{Name: "sockets bound to wan1", Mark: routing.Mark{Value: 0x81000000, Mask: 0xff000000}, LinkName: "wan1", Strict: true},
	}
	if !slices.Equal(bindings, wanted) {
		t.Errorf("bindings:\n%+v\nwant:\n%+v", bindings, wanted)
	}
}

// TestNumbers: a number belongs to one link, stays with it, and is one that the mask holds.
func TestNumbers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		mask := rapid.SampledFrom([]routing.MarkMask{routing.DefaultMarkMask, 0x70}).Draw(t, "mask")
		var held []binding.Held
		for range rapid.IntRange(0, 200).Draw(t, "asks") {
			link := rapid.StringMatching(`w[a-z][a-z]`).Draw(t, "link")
			before := slices.Clone(held)
			now, is := binding.Number(held, link, false, mask)
			if !is && len(held) < int(mask.Last()) {
				t.Fatalf("no number for %s with %d held", link, len(held))
			}
			if !slices.Equal(now[:len(before)], before) {
				t.Fatalf("a number moved: %v, before %v", now, before)
			}
			held = now
		}
		seen := map[uint8]bool{}
		for _, h := range held {
			if h.Number == 0 || h.Number > mask.Last() || seen[h.Number] {
				t.Fatalf("%v", held)
			}
			seen[h.Number] = true
		}
	})
}

// keeper is one in directories of the test's own.
func keeper(t *testing.T, dir string, problems *[]routing.Problem) *binding.Keeper {
	t.Helper()
	cfg := config.Default()
	cfg.StateDir, cfg.RuntimeDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	for _, d := range []string{cfg.StateDir, cfg.RuntimeDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return binding.New(binding.Options{
		Logger: slog.New(slog.DiscardHandler), Config: cfg,
		Problems:   func(p []routing.Problem) { *problems = p },
		LookupUser: func(name string) (uint32, error) { return 0, user.UnknownUserError(name) },
	})
}

// TestHeldMarks: the mark of a link is the same after a restart, and a mark that cannot be saved is
// not given.
func TestHeldMarks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var problems []routing.Problem
	k := keeper(t, dir, &problems)
	one, err := k.Hold(t.Context(), "wan1")
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.Hold(t.Context(), "wan2")
	if err != nil || one == two {
		t.Fatalf("%v and %v: %v", one, two, err)
	}
	k = keeper(t, dir, &problems)
	if bindings, known := k.Bindings(); len(bindings) != 2 || !known {
		t.Errorf("after a restart: %v, %t", bindings, known)
	}
	if again, err := k.Hold(t.Context(), "wan2"); err != nil || again != two {
		t.Errorf("%v, then %v (%v)", two, again, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "run", "bound.json"), []byte(`{"schema":1,"held":[{"link":"a","number":1},{"link":"b","number":1}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	k = keeper(t, dir, &problems)
	if len(problems) != 1 || problems[0].Code != binding.Unsaved {
		t.Errorf("two links with one number: %v", problems)
	}
	// Nothing with one of the earlier marks leaves, and no new one is among them, also after a restart.
	three, err := k.Hold(t.Context(), "wan3")
	if err != nil {
		t.Fatal(err)
	}
	k = keeper(t, dir, &problems)
	all, _ := k.Bindings()
	if len(all) != 2 || all[1].LinkName != "" || all[0].Mark != three {
		t.Fatalf("after the loss: %+v", all)
	}
	for _, m := range []routing.Mark{one, two, three} {
		if lost := m.Value&all[1].Mark.Mask == all[1].Mark.Value; lost != (m != three) {
			t.Errorf("%+v leads nowhere: %t", m, lost)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Hold(t.Context(), "wan4"); err == nil || !strings.Contains(err.Error(), "to fix: ") {
		t.Errorf("without a directory: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.Restore(); err != nil {
		t.Error(err)
	}
}

// TestChangedMask: sockets keep their mark, and are bound by it, when other bits are configured; those
// that come later get one of the new bits.
func TestChangedMask(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var problems []routing.Problem
	k := keeper(t, dir, &problems)
	before, err := k.Hold(t.Context(), "wan1")
	if err != nil {
		t.Fatal(err)
	}
	k.Config.Answers.MarkMask = 0x7f0000
	k = binding.New(k.Options)
	now, err := k.Hold(t.Context(), "wan1")
	if err != nil || now == before {
		t.Fatalf("%v, before %v: %v", now, before, err)
	}
	k = binding.New(k.Options)
	bindings, _ := k.Bindings()
	var marks []routing.Mark
	for _, b := range bindings {
		marks = append(marks, b.Mark)
		if b.LinkName != "wan1" || !b.Strict {
			t.Errorf("%+v", b)
		}
	}
	if !slices.Equal(marks, []routing.Mark{before, now}) || len(problems) > 0 {
		t.Errorf("bound are %v, not %v and %v; problems %v", marks, before, now, problems)
	}
}

// TestDamagedFile: what cannot be read is unknown at a start, and as before afterwards.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var problems []routing.Problem
	k := keeper(t, dir, &problems)
	path := filepath.Join(dir, "state", "bindings.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("[[bind]]\nlink='wan1'\nmark=1\n")
	k.Reload(t.Context())
	if b, known := k.Bindings(); len(b) != 1 || !known || len(problems) != 0 {
		t.Errorf("%v, %t, %v", b, known, problems)
	}
	write("[[bind]")
	k.Reload(t.Context())
	if b, known := k.Bindings(); len(b) != 1 || !known || len(problems) != 1 || problems[0].Code != binding.Unread {
		t.Errorf("damaged: %v, %t, %v", b, known, problems)
	}
	k = keeper(t, dir, &problems)
	if b, known := k.Bindings(); len(b) != 0 || known {
		t.Errorf("damaged at the start: %v, %t", b, known)
	}
	write(strings.Repeat("#", 1<<20+1))
	k.Reload(t.Context())
	if len(problems) != 1 || problems[0].Fix == "" {
		t.Errorf("too large: %v", problems)
	}
	write("")
	k.Reload(t.Context())
	if b, known := k.Bindings(); len(b) != 0 || !known || len(problems) != 0 {
		t.Errorf("mended: %v, %t, %v", b, known, problems)
	}
}

// TestUnreadableUsers: a user stays bound while passwd(5) cannot be read, and no longer once he is gone.
func TestUnreadableUsers(t *testing.T) {
	t.Parallel()
	var problems []routing.Problem
	k := keeper(t, t.TempDir(), &problems)
	k.Config.Binds = []config.Bind{{Link: "wan1", User: "bonita", Strict: true}}
	var err error
	k.LookupUser = func(string) (uint32, error) { return 1702, err }
	for _, tt := range []struct {
		when           string
		err            error
		bound, problem int
	}{
		{"unreadable from the start", fs.ErrPermission, 0, 2},
		{"she exists", nil, 1, 0},
		{"unreadable", fs.ErrPermission, 1, 1},
		{"unreadable again", fs.ErrNotExist, 1, 1},
		{"she is gone", user.UnknownUserError("bonita"), 0, 1},
		{"unreadable since", fs.ErrPermission, 0, 2},
	} {
		err = tt.err
		k.Reload(t.Context())
		if b, _ := k.Bindings(); len(b) != tt.bound || len(problems) != tt.problem || tt.bound > 0 && b[0].Users.First != 1702 {
			t.Errorf("%s: %v, %v", tt.when, b, problems)
		}
	}
}
