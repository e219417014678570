/// `tributary coordinator ...` and `tributary client ...`: run the role's own program, as git runs its commands.
///
/// The roles are programs of their own so that a coordinator never links the training engine and a client never links
/// SQLite.

import ArgumentParser
import Glibc
import Primitives

struct CoordinatorRole: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "coordinator", abstract: "Run a federation: start, status, export, forget (tributary-coordinator).")

    @Argument(parsing: .captureForPassthrough, help: "Passed on to tributary-coordinator.")
    var arguments: [String] = []

    func run() throws { try RoleProgram.replaceProcess(with: "tributary-coordinator", arguments) }
}

struct ClientRole: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "client", abstract: "Take part in a federation: join (tributary-client).")

    @Argument(parsing: .captureForPassthrough, help: "Passed on to tributary-client.")
    var arguments: [String] = []

    func run() throws { try RoleProgram.replaceProcess(with: "tributary-client", arguments) }
}

enum RoleProgram {
    /// Becomes the program beside this one, or the first of that name in PATH.
    ///
    /// - Throws: `Failure(.unavailable)` that says how to build or install it. It does not return otherwise.
    static func replaceProcess(with name: String, _ arguments: [String]) throws(Failure) {
        let candidates = (ownFolder.map { [$0] } ?? []) + searchPath
        for folder in candidates {
            let path = folder + "/" + name
            guard access(path, X_OK) == 0 else { continue }
            var strings: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
            strings.append(nil)
            execv(path, &strings)
            let reason = String(cString: strerror(errno))
            for string in strings { free(string) }
            throw Failure(.unavailable, "\(path) cannot be run: \(reason)")
        }
        throw Failure(
            .unavailable,
            "\(name) is neither beside this program\(ownFolder.map { " (\($0))" } ?? "") nor in PATH: build it with `swift build -c release --product \(name)`, or install all programs with `make install`"
        )
    }

    /// The folder of the running program, links resolved.
    private static var ownFolder: String? {
        guard let resolved = realpath("/proc/self/exe", nil) else { return nil }
        defer { free(resolved) }
        let path = String(cString: resolved)
        return path.lastIndex(of: "/").map { String(path[..<$0]) }
    }

    private static var searchPath: [String] {
        guard let path = getenv("PATH") else { return [] }
        return String(cString: path).split(separator: ":").map(String.init)
    }
}
