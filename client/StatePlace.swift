/// Where a client keeps its state if nobody says otherwise: one folder for each coordinator and name.

import FoundationEssentials
import Primitives
import Transport

enum StatePlace {
    /// `$XDG_STATE_HOME/tributary/HOST_PORT/NAME`, with `~/.local/state` where the variable is not set
    /// (XDG Base Directory Specification 0.8).
    static func standard(coordinator: TransportAddress, name: String) throws(Failure) -> String {
        let environment = ProcessInfo.processInfo.environment
        let root: String
        if let state = environment["XDG_STATE_HOME"], state.hasPrefix("/") {
            root = state
        } else if let home = environment["HOME"], home.hasPrefix("/") {
            root = home + "/.local/state"
        } else {
            throw Failure(.usage, "there is no home folder for this client's state: name a folder with --state")
        }
        // A host is plain ASCII without slashes; an IPv6 number's colons are no trouble in a file name.
        return "\(root)/tributary/\(coordinator.host)_\(coordinator.port)/\(name)"
    }

    /// In bytes; 0 if it cannot be read.
    static func fileSize(_ path: String) -> Int {
        ((try? FileManager.default.attributesOfItem(atPath: path))?[.size] as? Int) ?? 0
    }
}
