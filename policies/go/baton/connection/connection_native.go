//go:build !wasip1

package connection

import "baton/internal/native"

func init() {
	native.OnConnect = func(connection any) any { return ask(connection.(Connection)) }
}
