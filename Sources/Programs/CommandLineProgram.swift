/// How a program of ours starts and ends: one line on standard error and a documented exit code for each `Failure`.

import ArgumentParser
import Glibc
import Primitives

public enum CommandLineProgram {
    /// Parses the command line, runs the command, and ends the process.
    ///
    /// A wrong command line is one sentence and exit code 64 too.
    public static func run(_ root: any ParsableCommand.Type, arguments: [String]? = nil) -> Never {
        // A reader that went away (`| head`) is an error of that write, not the end of a training run.
        signal(SIGPIPE, SIG_IGN)
        // So is a file that would become larger than allowed (ulimit -f).
        signal(SIGXFSZ, SIG_IGN)
        do {
            var command = try root.parseAsRoot(arguments)
            try command.run()
            if let failure = Console.lostOutput { end(failure) }
        } catch let failure as Failure {
            end(failure)
        } catch {
            // Help and versions end well. Of a wrong command line the parser's first line says all; help is one word away.
            guard root.exitCode(for: error) == .validationFailure else { root.exit(withError: error) }
            let line = root.message(for: error).split(separator: "\n").first.map(String.init) ?? "the command line is wrong"
            let hint = line.hasPrefix("Missing value for") ? "a value that begins with - is written --option=-1; " : ""
            let sentence = line.hasSuffix(".") ? String(line.dropLast()) : line
            end(Failure(.usage, "\(sentence); \(hint)--help lists the options"))
        }
        exit(0)
    }

    /// Says what failed, and ends the process with the failure's status.
    public static func end(_ failure: Failure) -> Never {
        let sentence = Readable.withoutControls(failure.message)
        Console.error(failure.status == .interrupted ? sentence : "error: \(sentence)")
        exit(failure.status.rawValue)
    }
}
