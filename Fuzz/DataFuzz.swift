/// Fuzz target `data`: training files of either form, JSONL and CSV.
///
/// The first byte chooses the form. Every record that is accepted must be written and read again.

import Datasets
import Primitives

extension FuzzTarget {
    static let data = FuzzTarget(name: "data", seeds: DataFuzz.seeds, run: DataFuzz.run)
}

private enum DataFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        [
            [0] + Array(#"{"text":"a \u00e9 \ud83d\ude00","label":"x","n":1.5e3}"#.utf8),
            [0] + Array("{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"prompt\":\"\",\"completion\":\"d\"}\n".utf8),
            [0]
                + Array(
                    #"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#
                        .utf8),
            [1] + Array("text,category\n\"a, \"\"b\"\"\nc\",d\r\ne,f\n".utf8),
        ]
    }

    @Sendable static func run(_ input: [UInt8]) -> String? {
        guard let first = input.first else { return "the input is too short" }
        do throws(Failure) {
            let records = try DataFile.read(Array(input.dropFirst()), path: first % 2 == 0 ? "fuzz.jsonl" : "fuzz.csv")
            for record in records { precondition(!record.json.isEmpty) }
        } catch {
            precondition(!error.message.isEmpty)
            return error.message
        }
        return nil
    }
}
