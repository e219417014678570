/// A folder with a tiny model and sums to learn, and the command line as a person would type it there.

import FoundationEssentials
import Primitives
import TestSupport

struct Workplace {
    let folder = TemporaryFolder()
    let model: String
    let data: String
    let evaluation: String

    static let records = 12

    init() throws {
        model = folder.file("model")
        data = folder.file("train.jsonl")
        evaluation = folder.file("eval.jsonl")
        try TinyBase.write(to: model)
        try write(data, TinyBase.records(Self.records))
        try write(evaluation, TinyBase.records(5, seed: 6))
    }

    func file(_ name: String) -> String { folder.file(name) }

    func write(_ path: String, _ text: String) throws { try Data(text.utf8).write(to: URL(filePath: path)) }

    func bytes(_ path: String) throws -> Data { try Data(contentsOf: URL(filePath: path)) }

    func text(_ path: String) throws -> String { String(decoding: try bytes(path), as: UTF8.self) }

    func exists(_ path: String) -> Bool { FileManager.default.fileExists(atPath: path) }

    func start(_ arguments: [String]) throws -> ProgramProcess {
        try ProgramProcess("tributary", arguments, in: folder, name: "tributary")
    }

    func run(_ arguments: [String]) throws -> Finished { try Finished.run("tributary", arguments, in: folder) }

    /// Runs a command that must succeed, with `--json`; its last object.
    func json(_ arguments: [String]) throws -> JSONValue {
        let finished = try run(arguments + ["--json"])
        guard finished.status == 0, let line = finished.output.split(separator: "\n").last else {
            throw ProgramFailure(description: "\(arguments) ended with \(finished.status): \(finished.errors)")
        }
        return try JSONValue(parsing: line.utf8)
    }

    func train(_ output: String, _ more: [String] = []) -> [String] {
        [
            "model", "train", "--model", model, "--data", data, "--steps", "6", "--batch-size", "4", "--sequence-length", "24",
            "--rank", "4", "--learning-rate", "5e-3", "--output", file(output),
        ] + more
    }

    func evaluate(_ more: [String] = []) -> [String] { ["model", "eval", "--model", model, "--data", data] + more }

    func simulate(_ output: String, _ more: [String] = []) -> [String] {
        [
            "simulate", "--model", model, "--data", data, "--clients", "3", "--rounds", "2", "--local-steps", "2",
            "--batch-size", "2", "--sequence-length", "24", "--ranks", "4", "--output", file(output),
        ] + more
    }

    /// A copy of the model, changed: its folder.
    func damagedModel(_ change: (_ folder: String) throws -> Void) throws -> String {
        let copy = file("damaged-\(UUID().uuidString)")
        try FileManager.default.copyItem(atPath: model, toPath: copy)
        try change(copy)
        return copy
    }
}
