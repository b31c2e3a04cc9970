//go:build !wasip1

package response

import (
	"slices"
	"time"

	"baton"
	"baton/internal/native"
)

func init() {
	native.OnResponse = func(carry []byte) any { return ask(carry) }
}

func response() *native.Response { return &native.Current().Response }

func status() int            { return response().Status }
func headers() baton.Fields  { return slices.Clone(response().Headers) }
func upstream() string       { return response().Upstream }
func elapsed() time.Duration { return response().Elapsed }

func header(name string) (string, bool) {
	for _, field := range response().Headers {
		if field[0] == name {
			return field[1], true
		}
	}
	return "", false
}
