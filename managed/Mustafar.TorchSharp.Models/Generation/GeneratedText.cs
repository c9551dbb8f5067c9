using Mustafar.Models.Tokenizer;

namespace Mustafar.Models.Generation;

/// <summary>Turns tokens into text while they are generated.</summary>
/// <param name="tokenizer">The tokenizer of the tokens.</param>
/// <param name="stopTokens">Tokens that end the text.</param>
/// <param name="stopSequences">Texts that end it and are not part of it, none empty.</param>
/// <param name="continuesText">Whether the tokens follow others, so that a leading space is part of the text.</param>
internal sealed class GeneratedText(
    TextTokenizer tokenizer, IReadOnlySet<int> stopTokens, IReadOnlyList<string> stopSequences, bool continuesText)
{
    /// <summary>Tokens so far, including one that ended the text.</summary>
    public int Tokens { get; private set; }

    /// <summary>Whether the text has ended.</summary>
    public bool HasEnded { get; private set; }

    /// <summary>Whether a stop token or a stop sequence ended it.</summary>
    public bool IsStopped { get; private set; }

    /// <summary>Reads the tokens until one of them, or a stop sequence, ends the text.</summary>
    /// <param name="tokens">The tokens, each as soon as it is known.</param>
    /// <returns>The parts of the text, each as soon as it is known.</returns>
    public IEnumerable<string> Read(IEnumerable<int> tokens)
    {
        StopSequences stops = new(stopSequences);
        IncrementalDetokenizer detokenizer = new(tokenizer, continuesText: continuesText);
        foreach (int token in tokens)
        {
            Tokens++;
            bool isEnd = stopTokens.Contains(token);
            string part = stops.Append(isEnd ? detokenizer.Finish() : detokenizer.Append(token));
            if (part.Length > 0)
            {
                yield return part;
            }

            if (isEnd || stops.IsFound)
            {
                IsStopped = true;
                break;
            }
        }

        HasEnded = true;
        string rest = (IsStopped ? "" : stops.Append(detokenizer.Finish())) + stops.Finish();
        if (rest.Length > 0)
        {
            yield return rest;
        }
    }
}
