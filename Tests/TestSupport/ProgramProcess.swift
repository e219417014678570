/// One of the three programs as a process of its own, as a person would start it.

import FoundationEssentials
import Glibc
import Primitives
import Synchronization

/// Where the built programs lie: beside the running test, or in TRIBUTARY_PROGRAMS.
public enum ProgramFolder {
    public static let path: String = {
        if let given = ProcessInfo.processInfo.environment["TRIBUTARY_PROGRAMS"] { return given }
        let resolved = realpath("/proc/self/exe", nil)
        defer { free(resolved) }
        let own = resolved.map { String(cString: $0) } ?? ""
        let folder = own.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(separator: "/")
        return access(folder + "/tributary", X_OK) == 0 ? folder : Golden.repository + "/.build/release"
    }()
}

public struct ProgramFailure: Error, CustomStringConvertible {
    public let description: String
    public init(description: String) { self.description = description }
}

/// Killed when it goes out of scope.
public final class ProgramProcess {
    public let name: String
    private let process: pid_t
    private let outputPath: String
    private let errorPath: String
    private var status: Int32?

    /// - Parameters:
    ///   - program: `tributary-coordinator`, ...
    ///   - folder: for the files that take what it prints
    ///   - environment: `NAME=value`, before this process's own
    public init(
        _ program: String, _ arguments: [String], in folder: TemporaryFolder, name: String, environment: [String] = []
    ) throws {
        self.name = name
        let path = ProgramFolder.path + "/" + program
        guard access(path, X_OK) == 0 else {
            throw ProgramFailure(
                description: "\(path) is missing: run `make test`, or `swift build -c release --product \(program)`")
        }
        let number = Self.count.withLock { count in
            count += 1
            return count
        }
        outputPath = folder.file("\(name)-\(number).out")
        errorPath = folder.file("\(name)-\(number).err")
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, outputPath, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, errorPath, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        var texts: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
        texts.append(nil)
        var variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) }
        defer { for text in texts + variables.prefix(environment.count) { free(text) } }
        var entry = environ
        while let variable = entry.pointee {
            variables.append(variable)
            entry += 1
        }
        variables.append(nil)
        var process = pid_t()
        let code = posix_spawn(&process, path, &actions, nil, texts, variables)
        guard code == 0 else {
            throw ProgramFailure(description: "\(path) cannot be started: \(String(cString: strerror(code)))")
        }
        self.process = process
    }

    deinit {
        guard status == nil else { return }
        Glibc.kill(process, SIGKILL)
        var ignored: Int32 = 0
        waitpid(process, &ignored, 0)
    }

    public var output: String { text(outputPath) }
    public var errors: String { text(errorPath) }

    private func text(_ path: String) -> String {
        (try? Data(contentsOf: URL(filePath: path))).map { String(decoding: $0, as: UTF8.self) } ?? ""
    }

    public func send(_ signal: Int32) { Glibc.kill(process, signal) }

    /// Ends it at once, as a power cut would.
    public func kill() {
        send(SIGKILL)
        _ = try? exitStatus(seconds: 5)
    }

    /// Waits for its end: the exit status, or 1000 and the signal that ended it.
    @discardableResult public func exitStatus(seconds: Double = 30) throws -> Int32 {
        if let status { return status }
        var raw: Int32 = 0
        try wait(seconds, for: "its end") { waitpid(process, &raw, WNOHANG) == process }
        let signal = raw & 0x7f
        let ended = signal == 0 ? (raw >> 8) & 0xff : 1000 + signal
        status = ended
        return ended
    }

    /// Objects that it has written with `--json`, in order.
    public var events: [JSONValue] {
        output.split(separator: "\n").compactMap { try? JSONValue(parsing: $0.utf8) }
    }

    /// Waits for an event of this name that `accept` takes.
    @discardableResult public func event(
        _ name: String, seconds: Double = 30, where accept: (JSONValue) -> Bool = { _ in true }
    ) throws -> JSONValue {
        var found: JSONValue?
        try wait(seconds, for: "the event \(name)") {
            found = events.first { $0["event"]?.text == name && accept($0) }
            return found != nil
        }
        guard let found else { throw ProgramFailure(description: "unreachable") }
        return found
    }

    /// Waits until standard error holds the text.
    public func waitForError(_ text: String, seconds: Double = 30) throws {
        try wait(seconds, for: "\"\(text)\" in its log") { errors.contains(text) }
    }

    private func wait(_ seconds: Double, for what: String, _ condition: () -> Bool) throws {
        let end = ContinuousClock.now + .seconds(seconds)
        while !condition() {
            guard ContinuousClock.now < end else {
                throw ProgramFailure(
                    description: "\(name): \(what) did not come within \(seconds) s. It wrote:\n\(output)\n\(errors)")
            }
            usleep(10_000)
        }
    }

    private static let count = Mutex(0)
}

/// What a program did that ends by itself.
public struct Finished {
    public let status: Int32
    public let output: String
    public let errors: String

    /// Runs a program to its end.
    public static func run(
        _ program: String, _ arguments: [String], in folder: TemporaryFolder, seconds: Double = 30, environment: [String] = []
    ) throws -> Finished {
        let process = try ProgramProcess(program, arguments, in: folder, name: program, environment: environment)
        let status = try process.exitStatus(seconds: seconds)
        return Finished(status: status, output: process.output, errors: process.errors)
    }

    /// The one line on standard error, without its "error: ".
    public var sentence: String {
        let lines = errors.split(separator: "\n")
        guard lines.count == 1, lines[0].hasPrefix("error: ") else { return "not one sentence: \(errors)" }
        return String(lines[0].dropFirst("error: ".count))
    }
}
