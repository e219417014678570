/// `tributary-client`: trains on this machine's data for a coordinator's run. It only dials out.

import ArgumentParser
import Primitives
import Programs

@main enum Program {
    static func main() { CommandLineProgram.run(Client.self) }
}

struct Client: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tributary-client", abstract: "Take part in a federation with this machine's data.",
        version: Version.current, subcommands: [JoinCommand.self])
}
