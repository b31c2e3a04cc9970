package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"baton"
	"baton/batontest"
)

// The cases that bearer answers in every language.
const cases = "../../cases/bearer"

func read[T any](t *testing.T, path string) T {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cases, path))
	if err != nil {
		t.Fatal(err)
	}
	var value T
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func names(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cases, pattern))
	if err != nil || len(found) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for i, path := range found {
		found[i], _ = filepath.Rel(cases, path)
	}
	return found
}

type answer struct {
	Action      string
	Status      int
	Headers     map[string]string
	Body        string
	Target      string
	Data        string
	Annotations map[string]string
}

func describe(decision baton.Decision) answer {
	pairs := func(fields baton.Fields) map[string]string {
		var pairs map[string]string
		for _, field := range fields {
			if pairs == nil {
				pairs = map[string]string{}
			}
			pairs[field[0]] = field[1]
		}
		return pairs
	}
	switch d := decision.(type) {
	case baton.Respond:
		return answer{Action: "respond", Status: d.Status, Headers: pairs(d.Headers), Body: string(d.Body)}
	case baton.Handoff:
		return answer{Action: "handoff", Target: d.Target, Data: string(d.Data), Annotations: pairs(d.Annotations)}
	default:
		return answer{Action: "other"}
	}
}

func TestEveryCase(t *testing.T) {
	gateway := batontest.New(t)
	requirements, faults := gateway.Configure(string(read[json.RawMessage](t, "config.json")))
	if faults != nil || !reflect.DeepEqual(requirements.Targets, []string{"chat"}) {
		t.Fatal(requirements, faults)
	}
	if err := gateway.SelfTest(); err != nil {
		t.Error(err)
	}
	for _, path := range names(t, "*.http") {
		t.Run(path, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(cases, path))
			if err != nil {
				t.Fatal(err)
			}
			wanted := read[answer](t, strings.TrimSuffix(path, ".http")+".json")
			if got := describe(gateway.Ask(string(raw))); !reflect.DeepEqual(got, wanted) {
				t.Errorf("got    %+v\nwanted %+v", got, wanted)
			}
		})
	}
}

func TestEveryRefusedConfiguration(t *testing.T) {
	gateway := batontest.New(t)
	for _, path := range names(t, "refused/*.json") {
		t.Run(path, func(t *testing.T) {
			refused := read[struct {
				Config json.RawMessage
				Faults []string
			}](t, path)
			if _, faults := gateway.Configure(string(refused.Config)); !reflect.DeepEqual(faults, refused.Faults) {
				t.Errorf("got    %q\nwanted %q", faults, refused.Faults)
			}
		})
	}
}

func TestTheDataIsJSONWhateverItHolds(t *testing.T) {
	for _, text := range []string{"q=\"\\\x01\n\x7f", "<&>\u2028🦀", ""} {
		var told struct{ User, Method, Path, Query string }
		raw := data(text, "GET", text, text, true)
		if err := json.Unmarshal(raw, &told); err != nil || told.User != text || told.Path != text || told.Query != text {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if got := string(data("<&>\u2028", "GET", "/", "", false)); got != "{\"user\":\"<&>\u2028\",\"method\":\"GET\",\"path\":\"/\",\"query\":null}" {
		t.Error(got)
	}
}

func TestADeepConfigurationIsRefused(t *testing.T) {
	if _, err := parse(strings.Repeat("[", 100_000)); err == nil || err.Error() != "config: not JSON" {
		t.Error(err)
	}
}
