//! What a browser's tree builder does for each kind of element.
//!
//! Source: WHATWG, HTML Standard, sections 13.2.4.2 and 13.2.6.4.7.

/// Kinds of elements that differ in what they open, close and bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Such as `span`, or a name of no element.
    Other,
    /// Opened again after the block that it stood in.
    Formatting,
    /// Formatting that does not nest in itself.
    Anchor,
    /// Without content.
    Void,
    /// Closes an open paragraph.
    Block,
    Paragraph,
    Heading,
    ListItem,
    /// `dt` and `dd`.
    Definition,
    /// `option` and `optgroup`.
    Option,
    /// The parts of `ruby`.
    Ruby,
    Select,
    Button,
    Form,
    /// Holds text that looks like tags.
    Raw,
    /// Like raw text, to the end of the page.
    PlainText,
    /// At most once in a page.
    Once,
    /// Neither closes others nor is closed with them.
    Apart,
    Table,
    RowGroup,
    /// `caption` and `colgroup`.
    Caption,
    Row,
    Cell,
    /// `object` and the like: what is open outside is not closed from inside.
    Scope,
    Template,
    /// `svg` and `math`.
    Foreign,
    /// Holds HTML within SVG and `MathML`.
    Integration,
    /// Holds HTML within `MathML` if an attribute says so.
    Annotation,
}

/// The kind of element of a name in lower case.
pub fn kind_of(name: &[u8]) -> Kind {
    match name {
        b"a" | b"nobr" => Kind::Anchor,
        b"b" | b"big" | b"code" | b"em" | b"font" | b"i" | b"s" | b"small" | b"strike"
        | b"strong" | b"tt" | b"u" => Kind::Formatting,
        b"area" | b"base" | b"basefont" | b"bgsound" | b"br" | b"col" | b"embed" | b"frame"
        | b"hr" | b"img" | b"image" | b"input" | b"keygen" | b"link" | b"meta" | b"param"
        | b"source" | b"track" | b"wbr" => Kind::Void,
        b"address" | b"article" | b"aside" | b"blockquote" | b"center" | b"details" | b"dialog"
        | b"dir" | b"div" | b"dl" | b"fieldset" | b"figcaption" | b"figure" | b"footer"
        | b"header" | b"hgroup" | b"listing" | b"main" | b"menu" | b"nav" | b"ol" | b"pre"
        | b"search" | b"section" | b"summary" | b"ul" => Kind::Block,
        b"p" => Kind::Paragraph,
        b"h1" | b"h2" | b"h3" | b"h4" | b"h5" | b"h6" => Kind::Heading,
        b"li" => Kind::ListItem,
        b"dd" | b"dt" => Kind::Definition,
        b"option" | b"optgroup" => Kind::Option,
        b"rb" | b"rp" | b"rt" | b"rtc" => Kind::Ruby,
        b"select" => Kind::Select,
        b"button" => Kind::Button,
        b"form" => Kind::Form,
        b"iframe" | b"noembed" | b"noframes" | b"script" | b"style" | b"textarea" | b"title"
        | b"xmp" => Kind::Raw,
        b"plaintext" => Kind::PlainText,
        b"html" | b"head" | b"body" => Kind::Once,
        b"noscript" | b"frameset" => Kind::Apart,
        b"table" => Kind::Table,
        b"tbody" | b"tfoot" | b"thead" => Kind::RowGroup,
        b"caption" | b"colgroup" => Kind::Caption,
        b"tr" => Kind::Row,
        b"td" | b"th" => Kind::Cell,
        b"applet" | b"marquee" | b"object" => Kind::Scope,
        b"template" => Kind::Template,
        b"svg" | b"math" => Kind::Foreign,
        _ if holds_html_in_svg(name) || holds_html_in_math(name) => Kind::Integration,
        b"annotation-xml" => Kind::Annotation,
        _ => Kind::Other,
    }
}

/// Whether an element of this name holds HTML within SVG.
pub fn holds_html_in_svg(name: &[u8]) -> bool {
    matches!(name, b"foreignobject" | b"desc" | b"title")
}

/// Whether an element of this name holds HTML within `MathML`.
pub fn holds_html_in_math(name: &[u8]) -> bool {
    matches!(name, b"mi" | b"mo" | b"mn" | b"ms" | b"mtext")
}

/// Whether a start tag of this name ends what is open of SVG and `MathML`.
pub fn leaves_foreign(name: &[u8]) -> bool {
    match kind_of(name) {
        Kind::Anchor => name == b"nobr",
        Kind::Formatting => name != b"font",
        Kind::Void => matches!(name, b"br" | b"embed" | b"hr" | b"img" | b"meta"),
        Kind::Block => matches!(
            name,
            b"blockquote"
                | b"center"
                | b"div"
                | b"dl"
                | b"listing"
                | b"menu"
                | b"ol"
                | b"pre"
                | b"ul"
        ),
        Kind::Paragraph | Kind::Heading | Kind::ListItem | Kind::Definition | Kind::Table => true,
        Kind::Once => matches!(name, b"head" | b"body"),
        _ => matches!(name, b"ruby" | b"span" | b"sub" | b"sup" | b"var"),
    }
}

impl Kind {
    /// Whether an end tag does not look beyond it for an element that is no block itself.
    pub fn is_special(self) -> bool {
        !matches!(
            self,
            Self::Other
                | Self::Formatting
                | Self::Anchor
                | Self::Option
                | Self::Ruby
                | Self::Foreign
        )
    }

    /// Whether what is open outside cannot be closed from inside.
    pub fn bounds_scope(self) -> bool {
        matches!(
            self,
            Self::Table
                | Self::Cell
                | Self::Scope
                | Self::Template
                | Self::Caption
                | Self::Integration
                | Self::Annotation
        )
    }

    /// Whether formatting of outside is not opened again inside.
    pub fn bounds_formatting(self) -> bool {
        matches!(
            self,
            Self::Cell | Self::Caption | Self::Scope | Self::Template
        )
    }

    /// Whether a start tag ends an open paragraph.
    pub fn ends_paragraph(self) -> bool {
        matches!(
            self,
            Self::Block
                | Self::Paragraph
                | Self::Heading
                | Self::ListItem
                | Self::Definition
                | Self::Form
        )
    }

    pub fn is_formatting(self) -> bool {
        matches!(self, Self::Formatting | Self::Anchor)
    }
}
