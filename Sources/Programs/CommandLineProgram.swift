/// How a program of ours starts and ends: one line on standard error and a documented exit code for each `Failure`.

import ArgumentParser
import Glibc
import Primitives

public enum CommandLineProgram {
    /// Parses the command line, runs the command, and ends the process.
    ///
    /// Wrong arguments, help and version are the argument parser's own: exit code 64, or 0.
    public static func run(_ root: any ParsableCommand.Type, arguments: [String]? = nil) -> Never {
        // A reader that went away (`| head`) is an error of that write, not the end of a training run.
        signal(SIGPIPE, SIG_IGN)
        do {
            var command = try root.parseAsRoot(arguments)
            try command.run()
            if let failure = Console.lostOutput { end(failure) }
        } catch let failure as Failure {
            end(failure)
        } catch {
            root.exit(withError: error)
        }
        exit(0)
    }

    /// Says what failed, and ends the process with the failure's status.
    public static func end(_ failure: Failure) -> Never {
        Console.error(failure.status == .interrupted ? failure.message : "error: \(failure.message)")
        exit(failure.status.rawValue)
    }
}
