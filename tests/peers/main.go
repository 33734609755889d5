// The peer of Layerwright's SOCI code: the soci-snapshotter module itself, asked for the same things.
//
//	soci-peer ztoc [-span-size N] LAYER                 the marshalled ztoc of a gzip layer, on stdout
//	soci-peer ztocs [-span-size N] [-compression C] OUTDIR LAYER…  the same for many layers: OUTDIR/<name of the layer's file>
//	soci-peer marshal OUTDIR <JSON                      marshals described ztocs: OUTDIR/0, OUTDIR/1, …
//	soci-peer check ZTOC LAYER                          reads a layer back through a ztoc, span by span
//	soci-peer convert [flags] LAYOUT_IN LAYOUT_OUT      what `soci convert --standalone --format oci-dir` does
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	// A ztoc holds times with the offset of the machine's zone. Digests are compared, so the zone is fixed.
	time.Local = time.UTC
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no command given: ztoc, ztocs, marshal, check or convert"))
	}
	commands := map[string]func([]string) error{
		"ztoc": ztocCommand, "ztocs": ztocsCommand, "marshal": marshalCommand, "check": checkCommand, "convert": convertCommand,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		fail(fmt.Errorf("unknown command %q", os.Args[1]))
	}
	if err := command(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "soci-peer:", err)
	os.Exit(1)
}

// flagged parses the flags in front of the arguments and insists on at least `count` arguments.
func flagged(flags *flag.FlagSet, arguments []string, count int) ([]string, error) {
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	if flags.NArg() < count {
		return nil, fmt.Errorf("%s takes %d arguments", flags.Name(), count)
	}
	return flags.Args(), nil
}

// bytesOf reads a number of bytes; ztoc also takes it as a second argument.
func bytesOf(text string) (int64, error) {
	return strconv.ParseInt(text, 10, 64)
}
