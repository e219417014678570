/// `tributary-coordinator`: runs one federation. It hashes the base model and never loads it.

import ArgumentParser
import Primitives
import Programs

@main enum Program {
    static func main() { CommandLineProgram.run(Coordinator.self) }
}

struct Coordinator: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tributary-coordinator", abstract: "Run a federation, look at it, take its adapter out.",
        version: Version.current,
        subcommands: [StartCommand.self, StatusCommand.self, ExportCommand.self, ForgetCommand.self])
}
