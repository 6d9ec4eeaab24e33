// A runtime of sixty lines: what its library does with a configuration, a container and its namespace.
//
//	libcni CONFLIST PLUGINS CACHE COMMAND ID NAMESPACE INTERFACE
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(words []string) error {
	if len(words) != 7 {
		return fmt.Errorf("seven words are wanted, not %d", len(words))
	}
	list, err := libcni.ConfListFromFile(words[0])
	if err != nil {
		return err
	}
	ctx := context.Background()
	network := libcni.NewCNIConfigWithCacheDir([]string{words[1]}, words[2], nil)
	container := &libcni.RuntimeConf{ContainerID: words[4], NetNS: words[5], IfName: words[6]}
	switch words[3] {
	case "validate":
		found, err := network.ValidateNetworkList(ctx, list)
		fmt.Println(found)
		return err
	case "add":
		result, err := network.AddNetworkList(ctx, list, container)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	case "check":
		return network.CheckNetworkList(ctx, list, container)
	case "del":
		return network.DelNetworkList(ctx, list, container)
	}
	return fmt.Errorf("no command %q", words[3])
}
