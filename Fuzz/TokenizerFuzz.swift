/// Fuzz target `tokenizer`: `tokenizer.json`, and text through whatever it makes.
///
/// The input is a tokenizer file, then a zero byte, then a text. What is accepted must encode the text to tokens of its
/// vocabulary and decode them without an error.

import Primitives
import Tokenizers

extension FuzzTarget {
    static let tokenizer = FuzzTarget(name: "tokenizer", seeds: TokenizerFuzz.seeds, run: TokenizerFuzz.run)
}

private enum TokenizerFuzz {
    @Sendable static func seeds() -> [[UInt8]] {
        let byteLevel = #"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#
        let files = [
            #"{"version":"1.0","added_tokens":[{"id":4,"content":"<e>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],"normalizer":null,"pre_tokenizer":\#(byteLevel),"post_processor":null,"decoder":\#(byteLevel),"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3,"<e>":4},"merges":["a b"]}}"#,
            #"{"version":"1.0","added_tokens":[],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+"},"behavior":"Isolated","invert":false},\#(byteLevel)]},"post_processor":null,"decoder":\#(byteLevel),"model":{"type":"BPE","byte_fallback":false,"vocab":{"x":0,"y":1,"xy":2},"merges":[["x","y"]]}}"#,
        ]
        return files.map { Array($0.utf8) + [0] + Array("ab ba <e> xyx".utf8) }
    }

    @Sendable static func run(_ input: [UInt8]) {
        let parts = input.split(separator: 0, maxSplits: 1, omittingEmptySubsequences: false)
        let text = String(decoding: parts.count > 1 ? Array(parts[1]) : [], as: UTF8.self)
        do throws(Failure) {
            let tokenizer = try Tokenizer(bytes: Array(parts[0]), path: "fuzz")
            let tokens = tokenizer.encode(text, addSpecialTokens: true)
            _ = tokenizer.decode(tokens, skipSpecialTokens: false)
        } catch {
            precondition(!error.message.isEmpty)
        }
    }
}
