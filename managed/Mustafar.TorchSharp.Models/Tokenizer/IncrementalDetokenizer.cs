using System.Text;

namespace Mustafar.Models.Tokenizer;

/// <summary>Turns ids into text as they come. A character whose bytes are spread over several tokens comes out once it is whole.</summary>
public sealed class IncrementalDetokenizer
{
    private readonly TextTokenizer _tokenizer;
    private readonly bool _skipSpecialTokens;
    private readonly Decoder _decoder = Encoding.UTF8.GetDecoder();
    private readonly bool _continuesText;
    private bool _begun;

    /// <summary>Starts a text.</summary>
    /// <param name="tokenizer">The tokenizer of the ids.</param>
    /// <param name="skipSpecialTokens">Whether to leave out special tokens.</param>
    /// <param name="continuesText">Whether the ids follow others, so that a space in front is part of the text.</param>
    public IncrementalDetokenizer(TextTokenizer tokenizer, bool skipSpecialTokens = true, bool continuesText = false)
    {
        ArgumentNullException.ThrowIfNull(tokenizer);
        _tokenizer = tokenizer;
        _skipSpecialTokens = skipSpecialTokens;
        _continuesText = continuesText;
    }

    /// <summary>Takes the next id.</summary>
    /// <returns>The characters that are whole with it; often none.</returns>
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

    /// <summary>Ends the text, after which another may begin.</summary>
    /// <returns>U+FFFD if a character was left unfinished, else nothing.</returns>
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
