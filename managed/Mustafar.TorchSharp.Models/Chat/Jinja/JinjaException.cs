namespace Mustafar.Models.Chat.Jinja;

/// <summary>A template is not valid, uses something that is not supported, or failed while it was rendered.</summary>
internal class JinjaException : Exception
{
    /// <summary>Makes an exception.</summary>
    /// <param name="message">What is wrong.</param>
    /// <param name="line">Line of the template, from 1; 0 if it is not known yet.</param>
    public JinjaException(string message, int line = 0)
        : base(message) => Line = line;

    /// <summary>Line of the template, from 1; 0 if it is not known.</summary>
    public int Line { get; set; }
}

/// <summary>The template itself called <c>raise_exception</c>: it does not accept the messages.</summary>
internal sealed class TemplateRaisedException(string message) : JinjaException(message);
