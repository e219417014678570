/// `tributary-coordinator forget`: lets a name be taken anew, by a client that lost its state.

import ArgumentParser
import CoordinatorCore
import CoordinatorStore
import Primitives
import Programs

struct ForgetCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "forget", abstract: "Let a client's name be taken anew.",
        discussion:
            "For a client that lost its state folder. What it contributed stays. A running coordinator notices within a second.")

    @Argument(help: "The client's name.")
    var name: String
    @Option(help: ArgumentHelp("The run's state.", valueName: "file"))
    var state: String = StateFile.defaultPath

    func run() throws {
        let (store, federation) = try StateFile(path: state).open()
        guard federation.members.contains(where: { $0.name == name }) else {
            let names = federation.members.map(\.name)
            throw Failure(
                .usage,
                "this run has no client \(name); it has \(names.isEmpty ? "none" : names.joined(separator: ", "))")
        }
        try store.apply([.forget(name: name)])
        Console.line("\(name) is forgotten: the next client that joins as \(name) is a new one")
    }
}
