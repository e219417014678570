/// Fuzz target `safetensors`: files of weights, whose headers are JSON with offsets.
///
/// An even first byte makes the rest the header's text and gives it a right length and the data that it states; an odd one takes
/// the rest as the file. Every tensor of a file that is accepted must lie in it: all its bytes are read.

import Checkpoints
import Primitives

extension FuzzTarget {
    static let safetensors = FuzzTarget(name: "safetensors", seeds: SafetensorsFuzz.seeds, run: SafetensorsFuzz.run)
}

private enum SafetensorsFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let headers = [
            #"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#,
            #"{"__metadata__":{"format":"pt"},"x":{"dtype":"U8","shape":[8,8],"data_offsets":[0,64]}}"#,
            #"{"n":{"dtype":"F16","shape":[],"data_offsets":[0,2]},"e":{"dtype":"I64","shape":[0],"data_offsets":[2,2]}}"#,
        ]
        return headers.flatMap { header in
            let text = Array(header.utf8)
            return [[0] + text, [1] + FuzzPlace.safetensors(header: text, data: [7])]
        }
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        guard let first = input.first else { return "the input is empty" }
        var bytes = Array(input.dropFirst())
        if first % 2 == 0 {
            bytes = FuzzPlace.safetensors(header: bytes, data: [7])
        }
        guard FuzzPlace.write(bytes) else { return FuzzPlace.unwritable }
        do throws(Failure) {
            let file = try SafetensorsFile(path: FuzzPlace.path)
            var sum = 0
            for name in file.names {
                guard let tensor = file.tensors[name] else { preconditionFailure("a name has no tensor") }
                precondition(tensor.bytes.count <= bytes.count, "a tensor is larger than its file")
                sum += tensor.bytes.reduce(0) { $0 &+ Int($1) }
            }
            precondition(sum >= 0)
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
