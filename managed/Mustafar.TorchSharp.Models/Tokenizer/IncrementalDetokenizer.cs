using System.Text;

namespace Mustafar.Models.Tokenizer;

/// <summary>Turns ids into text one by one. A character whose bytes are spread over several tokens is returned once it is
/// complete.</summary>
public sealed class IncrementalDetokenizer
{
    private readonly TextTokenizer _tokenizer;
    private readonly bool _skipSpecialTokens;
    private readonly Decoder _decoder = Encoding.UTF8.GetDecoder();
    private readonly bool _continuesText;
    private bool _begun;

    /// <summary>Starts a text.</summary>
    /// <param name="tokenizer">The tokenizer of the ids.</param>
    /// <param name="skipSpecialTokens">Whether to omit special tokens.</param>
    /// <param name="continuesText">Whether the ids follow others, so that a leading space is part of the text.</param>
    public IncrementalDetokenizer(TextTokenizer tokenizer, bool skipSpecialTokens = true, bool continuesText = false)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        _tokenizer = tokenizer;
        _skipSpecialTokens = skipSpecialTokens;
        _continuesText = continuesText;
    }

    /// <summary>Takes the next id.</summary>
    /// <returns>The characters that it completes; often none.</returns>
    /// <exception cref="ArgumentOutOfRangeException">The id is not in the vocabulary.</exception>
    public string Append(int id)
    {
        if (_skipSpecialTokens && _tokenizer.IsSpecial(id))
        {
            return "";
        }

        ReadOnlySpan<byte> bytes = _tokenizer.BytesOf(id);
        bool dropsSpace = !_begun && !_continuesText && _tokenizer.DropsFirstSpace && bytes is [(byte)' ', ..];
        _begun |= bytes.Length > 0;
        return Decode(dropsSpace ? bytes[1..] : bytes, flush: false);
    }

    /// <summary>Ends the text; another may follow.</summary>
    /// <returns>U+FFFD if a character is incomplete, otherwise nothing.</returns>
    public string Finish()
    {
        _begun = false;
        return Decode([], flush: true);
    }

    private string Decode(ReadOnlySpan<byte> bytes, bool flush)
    {
        char[] characters = new char[_decoder.GetCharCount(bytes, flush)];
        int count = _decoder.GetChars(bytes, characters, flush);
        return new string(characters, 0, count);
    }
}
